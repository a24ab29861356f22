# -DSUBQUAD_SANITIZE=address,undefined builds everything with these sanitizers.
set(SUBQUAD_SANITIZE "" CACHE STRING "Sanitizers, as for -fsanitize=")
if(SUBQUAD_SANITIZE)
  # vptr asks for the type information of torch's classes, which torch hides.
  set(SUBQUAD_SANITIZE_FLAGS -fsanitize=${SUBQUAD_SANITIZE} -fno-sanitize=vptr
                             -fno-sanitize-recover=all -fno-omit-frame-pointer)
  # -O1 compiles several times faster than -O3 and keeps the traces readable.
  set(SUBQUAD_KERNEL_OPTIMIZATION -O1)
  set(CMAKE_CXX_FLAGS_RELEASE "-O1 -g1")
  add_compile_options(${SUBQUAD_SANITIZE_FLAGS})
  add_link_options(${SUBQUAD_SANITIZE_FLAGS})
endif()

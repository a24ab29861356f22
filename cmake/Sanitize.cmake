# -DSUBQUAD_SANITIZE=address,undefined builds everything with these sanitizers.
set(SUBQUAD_SANITIZE "" CACHE STRING "Sanitizers, as for -fsanitize=")
if(SUBQUAD_SANITIZE)
  # vptr asks for the type information of torch's classes, which torch hides.
  add_compile_options(-fsanitize=${SUBQUAD_SANITIZE} -fno-sanitize=vptr
                      -fno-sanitize-recover=all -fno-omit-frame-pointer)
  add_link_options(-fsanitize=${SUBQUAD_SANITIZE})
  # -O1 compiles several times faster than -O3 and keeps the traces readable.
  set(CMAKE_CXX_FLAGS_RELEASE "-O1 -g1")
  set(SUBQUAD_KERNEL_OPTIMIZATION -O1)
  # The variants of a kernel are one source: the AVX2 ones are watched (run with
  # ATEN_CPU_CAPABILITY=avx2). torch wants all of them to exist.
  set(SUBQUAD_UNWATCHED_FLAGS -O0 -g0 -fno-sanitize=all -Wno-psabi)
endif()

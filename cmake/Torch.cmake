# Finds the torch that Python imports. find_package(Torch) is not used: with a
# CUDA build of torch it demands a complete CUDA toolkit even for CPU sources.
execute_process(
  COMMAND
    "${Python_EXECUTABLE}" -c
    "import os, torch; print(';'.join([torch.__version__, os.path.dirname(torch.__file__), str(int(torch._C._GLIBCXX_USE_CXX11_ABI)), torch.version.cuda or '']))"
  OUTPUT_VARIABLE SUBQUAD_TORCH
  OUTPUT_STRIP_TRAILING_WHITESPACE
  RESULT_VARIABLE SUBQUAD_TORCH_RESULT)
if(NOT SUBQUAD_TORCH_RESULT EQUAL 0)
  message(
    FATAL_ERROR
      "subquad: ${Python_EXECUTABLE} cannot import torch. Install torch>=2.14,<2.15 "
      "there, or build with isolation (pip install . without --no-build-isolation).")
endif()
list(GET SUBQUAD_TORCH 0 SUBQUAD_TORCH_VERSION)
list(GET SUBQUAD_TORCH 1 SUBQUAD_TORCH_ROOT)
list(GET SUBQUAD_TORCH 2 SUBQUAD_TORCH_CXX11_ABI)
list(GET SUBQUAD_TORCH 3 SUBQUAD_TORCH_CUDA)
if(NOT SUBQUAD_TORCH_VERSION MATCHES "^2\\.14\\.")
  message(FATAL_ERROR "subquad: torch>=2.14,<2.15 is needed, found "
                      "${SUBQUAD_TORCH_VERSION} in ${SUBQUAD_TORCH_ROOT}")
endif()
message(STATUS "subquad: torch ${SUBQUAD_TORCH_VERSION} in ${SUBQUAD_TORCH_ROOT}")

add_library(subquad_torch INTERFACE)
# SYSTEM: warnings of torch's headers are not ours.
target_include_directories(
  subquad_torch SYSTEM
  INTERFACE "${SUBQUAD_TORCH_ROOT}/include"
            "${SUBQUAD_TORCH_ROOT}/include/torch/csrc/api/include")
target_compile_definitions(
  subquad_torch INTERFACE _GLIBCXX_USE_CXX11_ABI=${SUBQUAD_TORCH_CXX11_ABI})
target_link_libraries(
  subquad_torch INTERFACE "${SUBQUAD_TORCH_ROOT}/lib/libtorch_cpu.so"
                          "${SUBQUAD_TORCH_ROOT}/lib/libc10.so")

# at::parallel_for runs serially in units that are compiled without OpenMP. Link
# the runtime that torch brings, so that a process has one pool of threads.
find_package(OpenMP REQUIRED COMPONENTS CXX)
target_compile_options(subquad_torch INTERFACE ${OpenMP_CXX_FLAGS})
if(EXISTS "${SUBQUAD_TORCH_ROOT}/lib/libgomp.so.1")
  target_link_libraries(subquad_torch
                        INTERFACE "${SUBQUAD_TORCH_ROOT}/lib/libgomp.so.1")
else()
  target_link_libraries(subquad_torch INTERFACE OpenMP::OpenMP_CXX)
endif()

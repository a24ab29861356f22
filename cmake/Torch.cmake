# The torch that our own library is built against.
include("${CMAKE_CURRENT_LIST_DIR}/SubquadTorch.cmake")
if(SUBQUAD_TORCH_ERROR)
  message(
    FATAL_ERROR
      "subquad: ${SUBQUAD_TORCH_ERROR}. Install torch>=2.14,<2.15 there, or build "
      "with isolation (pip install . without --no-build-isolation).")
endif()
if(NOT SUBQUAD_TORCH_VERSION MATCHES "^2\\.14\\.")
  message(FATAL_ERROR "subquad: torch>=2.14,<2.15 is needed, found "
                      "${SUBQUAD_TORCH_VERSION} in ${SUBQUAD_TORCH_ROOT}")
endif()
message(STATUS "subquad: torch ${SUBQUAD_TORCH_VERSION} in ${SUBQUAD_TORCH_ROOT}")

# at::parallel_for runs serially in units that are compiled without OpenMP. Link
# the runtime that torch brings, so that a process has one pool of threads.
find_package(OpenMP REQUIRED COMPONENTS CXX)
add_library(subquad_openmp INTERFACE)
target_compile_options(subquad_openmp INTERFACE ${OpenMP_CXX_FLAGS})
if(EXISTS "${SUBQUAD_TORCH_ROOT}/lib/libgomp.so.1")
  target_link_libraries(subquad_openmp
                        INTERFACE "${SUBQUAD_TORCH_ROOT}/lib/libgomp.so.1")
else()
  target_link_libraries(subquad_openmp INTERFACE OpenMP::OpenMP_CXX)
endif()

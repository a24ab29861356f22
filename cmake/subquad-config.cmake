# find_package(subquad): the target subquad::subquad for C++ programs that call
# the operators or load models that do. See SubquadTorch.cmake for how torch is
# found.
get_filename_component(SUBQUAD_PACKAGE "${CMAKE_CURRENT_LIST_DIR}/.." ABSOLUTE)
file(STRINGS "${SUBQUAD_PACKAGE}/_build_info.json" SUBQUAD_BUILT_TORCH
     REGEX "\"torch\":")
string(REGEX REPLACE ".*\"([0-9]+\\.[0-9]+)[^\"]*\",?$" "\\1"
                     SUBQUAD_BUILT_TORCH "${SUBQUAD_BUILT_TORCH}")

include("${CMAKE_CURRENT_LIST_DIR}/SubquadTorch.cmake")
string(REGEX MATCH "^[0-9]+\\.[0-9]+" SUBQUAD_FOUND_TORCH
             "${SUBQUAD_TORCH_VERSION}")
if(NOT SUBQUAD_TORCH_ERROR AND NOT SUBQUAD_FOUND_TORCH STREQUAL
                               SUBQUAD_BUILT_TORCH)
  set(SUBQUAD_TORCH_ERROR
      "built for torch ${SUBQUAD_BUILT_TORCH} and found torch ${SUBQUAD_TORCH_VERSION} in ${SUBQUAD_TORCH_ROOT}: install torch ${SUBQUAD_BUILT_TORCH} there, or a subquad that was built for torch ${SUBQUAD_FOUND_TORCH}"
  )
endif()
if(SUBQUAD_TORCH_ERROR)
  set(subquad_FOUND FALSE)
  set(subquad_NOT_FOUND_MESSAGE "subquad: ${SUBQUAD_TORCH_ERROR}.")
  return()
endif()

if(NOT TARGET subquad::subquad)
  add_library(subquad::subquad SHARED IMPORTED)
  set_target_properties(subquad::subquad PROPERTIES IMPORTED_LOCATION
                        "${SUBQUAD_PACKAGE}/libsubquad.so")
  target_include_directories(subquad::subquad
                             INTERFACE "${SUBQUAD_PACKAGE}/include")
  target_compile_features(subquad::subquad INTERFACE cxx_std_20)
  target_link_libraries(subquad::subquad INTERFACE subquad_torch)
  # A program names no symbol of the library: loading it registers the operators.
  target_link_options(subquad::subquad INTERFACE LINKER:--no-as-needed)
  # A library with CUDA kernels needs these by name, and finds them where the
  # program found them.
  file(STRINGS "${SUBQUAD_PACKAGE}/_build_info.json" SUBQUAD_BUILT_CUDA
       REGEX "\"cuda\": \"[^\"]")
  if(SUBQUAD_BUILT_CUDA)
    file(
      GLOB SUBQUAD_CUDA_LIBRARIES
      "${SUBQUAD_TORCH_ROOT}/lib/libc10_cuda.so"
      "${SUBQUAD_TORCH_ROOT}/lib/libtorch_cuda.so"
      "${SUBQUAD_TORCH_ROOT}/lib/libcudart*.so.*"
      "${SUBQUAD_TORCH_ROOT}/lib/libcublas.so.*"
      "${SUBQUAD_TORCH_ROOT}/../nvidia/*/lib/libcudart.so.*"
      "${SUBQUAD_TORCH_ROOT}/../nvidia/*/lib/libcublas.so.*")
    target_link_libraries(subquad::subquad INTERFACE ${SUBQUAD_CUDA_LIBRARIES})
  endif()
endif()

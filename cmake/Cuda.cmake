# CUDA kernels: built when nvcc and a CUDA build of torch are there. No GPU is
# needed to build, and none is looked for.
#
# Included at the top level after the target `subquad`. Sets what the build
# record says: SUBQUAD_CUDA_ARCHITECTURES and _COMPILER, or SUBQUAD_CUDA_REASON.
set(SUBQUAD_CUDA_KERNELS
    csrc/ops/linear_attention/launch.cu
    csrc/ops/linear_attention/launch_backward.cu
    csrc/ops/linear_attention/launch_backward_bfloat16.cu
    csrc/ops/linear_attention/launch_backward_double.cu
    csrc/ops/linear_attention/launch_backward_float.cu
    csrc/ops/linear_attention/launch_backward_half.cu
    csrc/ops/mask_to_spans/launch.cu csrc/ops/merge_attention/launch.cu
    csrc/ops/random_features/launch.cu
    csrc/ops/random_features/launch_backward.cu
    csrc/ops/sequence_pool/launch.cu
    csrc/ops/window_attention/launch.cu
    csrc/ops/window_attention/launch_backward.cu
    csrc/ops/window_attention/launch_backward_bfloat16.cu
    csrc/ops/window_attention/launch_backward_double.cu
    csrc/ops/window_attention/launch_backward_float.cu
    csrc/ops/window_attention/launch_backward_half.cu
    csrc/ops/window_attention_weights/launch.cu)
set(SUBQUAD_CUDA_GLUE
    csrc/cuda/context.cpp
    csrc/cuda/gemm.cpp
    csrc/ops/linear_attention/cuda.cpp
    csrc/ops/mask_to_spans/cuda.cpp
    csrc/ops/merge_attention/cuda.cpp
    csrc/ops/projection/cuda.cpp
    csrc/ops/random_features/cuda.cpp
    csrc/ops/sequence_pool/cuda.cpp
    csrc/ops/window_attention/cuda.cpp
    csrc/ops/window_attention_weights/cuda.cpp)

set(SUBQUAD_CUDA_ARCHITECTURES "")
set(SUBQUAD_CUDA_COMPILER "")
set(SUBQUAD_CUDA_REASON "")
if(NOT SUBQUAD_CUDA MATCHES "^(auto|on|off)$")
  message(FATAL_ERROR
            "subquad: SUBQUAD_CUDA must be auto, on or off, got ${SUBQUAD_CUDA}")
endif()

# torch.version.cuda is 13.0, its libraries end in .so.13.
string(REGEX MATCH "^[0-9]+" SUBQUAD_CUDA_MAJOR "${SUBQUAD_TORCH_CUDA}")
get_filename_component(SUBQUAD_NVIDIA "${SUBQUAD_TORCH_ROOT}/../nvidia" ABSOLUTE)

if(SUBQUAD_CUDA STREQUAL "off")
  set(SUBQUAD_CUDA_REASON "built with -DSUBQUAD_CUDA=off")
elseif(SUBQUAD_TORCH_CUDA STREQUAL "")
  set(SUBQUAD_CUDA_REASON "torch ${SUBQUAD_TORCH_VERSION} is a CPU build")
else()
  find_program(
    SUBQUAD_NVCC nvcc HINTS ENV CUDA_HOME ENV CUDA_PATH
    PATHS /usr/local/cuda PATH_SUFFIXES bin)
  if(NOT SUBQUAD_NVCC)
    set(SUBQUAD_CUDA_REASON
        "no nvcc in PATH, CUDA_HOME or /usr/local/cuda when it was built")
  else()
    execute_process(COMMAND "${SUBQUAD_NVCC}" --version
                    OUTPUT_VARIABLE SUBQUAD_NVCC_VERSION)
    string(REGEX MATCH "release ([0-9]+)" _ "${SUBQUAD_NVCC_VERSION}")
    if(NOT CMAKE_MATCH_1 STREQUAL SUBQUAD_CUDA_MAJOR)
      set(SUBQUAD_CUDA_REASON
          "nvcc is of CUDA ${CMAKE_MATCH_1} and torch of CUDA ${SUBQUAD_TORCH_CUDA}"
      )
    endif()
  endif()
endif()

# The libraries that torch itself loads, by the names it loads them by: one
# runtime in a process.
if(SUBQUAD_CUDA_REASON STREQUAL "")
  set(SUBQUAD_CUDA_LIBRARIES "${SUBQUAD_TORCH_ROOT}/lib/libc10_cuda.so"
                             "${SUBQUAD_TORCH_ROOT}/lib/libtorch_cuda.so")
  foreach(name IN ITEMS cudart cublas)
    find_library(
      SUBQUAD_LIB_${name} "lib${name}.so.${SUBQUAD_CUDA_MAJOR}"
      PATHS "${SUBQUAD_NVIDIA}/cu${SUBQUAD_CUDA_MAJOR}/lib"
            "${SUBQUAD_NVIDIA}/${name}/lib" "${SUBQUAD_NVIDIA}/cuda_runtime/lib"
            "${SUBQUAD_TORCH_ROOT}/lib" ENV CUDA_HOME /usr/local/cuda
      PATH_SUFFIXES lib64)
    if(NOT SUBQUAD_LIB_${name})
      set(SUBQUAD_CUDA_REASON "no lib${name}.so.${SUBQUAD_CUDA_MAJOR} beside torch"
      )
    endif()
    list(APPEND SUBQUAD_CUDA_LIBRARIES "${SUBQUAD_LIB_${name}}")
  endforeach()
endif()

if(NOT SUBQUAD_CUDA_REASON STREQUAL "")
  if(SUBQUAD_CUDA STREQUAL "on")
    message(FATAL_ERROR "subquad: -DSUBQUAD_CUDA=on: ${SUBQUAD_CUDA_REASON}")
  endif()
  message(STATUS "subquad: CUDA kernels: off (${SUBQUAD_CUDA_REASON})")
  target_sources(subquad PRIVATE csrc/ops/without_cuda.cpp)
  set_source_files_properties(
    csrc/ops/without_cuda.cpp
    PROPERTIES COMPILE_DEFINITIONS
               "SUBQUAD_CUDA_REASON=\"${SUBQUAD_CUDA_REASON}\"")
  return()
endif()

# TORCH_CUDA_ARCH_LIST as torch's own builds read it: "8.0 8.6 9.0+PTX".
if(NOT DEFINED CMAKE_CUDA_ARCHITECTURES)
  if("$ENV{TORCH_CUDA_ARCH_LIST}" STREQUAL "")
    set(CMAKE_CUDA_ARCHITECTURES 80-real 90-real 90-virtual)
  else()
    string(REGEX MATCHALL "[^ ;,]+" SUBQUAD_ARCH_LIST
                 "$ENV{TORCH_CUDA_ARCH_LIST}")
    set(CMAKE_CUDA_ARCHITECTURES)
    foreach(arch IN LISTS SUBQUAD_ARCH_LIST)
      if(NOT arch MATCHES "^([0-9]+)\\.([0-9]+[af]?)(\\+PTX)?$"
         OR CMAKE_MATCH_1 LESS 8)
        message(
          FATAL_ERROR
            "subquad: TORCH_CUDA_ARCH_LIST must hold versions from 8.0 on, such as "
            "8.0 or 9.0+PTX, got ${arch}")
      endif()
      list(APPEND CMAKE_CUDA_ARCHITECTURES "${CMAKE_MATCH_1}${CMAKE_MATCH_2}-real")
      if(CMAKE_MATCH_3)
        list(APPEND CMAKE_CUDA_ARCHITECTURES
             "${CMAKE_MATCH_1}${CMAKE_MATCH_2}-virtual")
      endif()
    endforeach()
  endif()
endif()
set(CMAKE_CUDA_COMPILER "${SUBQUAD_NVCC}")
set(CMAKE_CUDA_RUNTIME_LIBRARY None)
set(CMAKE_CUDA_VISIBILITY_PRESET hidden)
enable_language(CUDA)
# CMake before 3.26 does not know that nvcc speaks C++20.
if(NOT CMAKE_CUDA20_STANDARD_COMPILE_OPTION)
  set(CMAKE_CUDA20_STANDARD_COMPILE_OPTION -std=c++20)
endif()
set(SUBQUAD_CUDA_ARCHITECTURES "${CMAKE_CUDA_ARCHITECTURES}")
set(SUBQUAD_CUDA_COMPILER "${CMAKE_CUDA_COMPILER_VERSION}")
message(STATUS "subquad: CUDA kernels: on (${CMAKE_CUDA_ARCHITECTURES})")

# An nvcc may take gigabytes: no more of them at once than memory allows.
cmake_host_system_information(RESULT SUBQUAD_MEMORY QUERY TOTAL_PHYSICAL_MEMORY)
math(EXPR SUBQUAD_NVCC_JOBS "${SUBQUAD_MEMORY} / 3072 + 1")
set_property(GLOBAL APPEND PROPERTY JOB_POOLS nvcc=${SUBQUAD_NVCC_JOBS})

# Kernels see no torch header: a unit takes seconds instead of half a minute.
add_library(subquad_kernels OBJECT ${SUBQUAD_CUDA_KERNELS})
set_target_properties(subquad_kernels PROPERTIES CUDA_STANDARD 20
                                                 CUDA_EXTENSIONS OFF
                                                 JOB_POOL_COMPILE nvcc)
target_include_directories(subquad_kernels PRIVATE csrc)
target_compile_options(subquad_kernels PRIVATE --expt-relaxed-constexpr
                                               -Xcompiler=-Wall,-Wextra)

# The toolkit's headers come first: torch's wheels bring only a part of them.
target_sources(subquad PRIVATE ${SUBQUAD_CUDA_GLUE}
                               $<TARGET_OBJECTS:subquad_kernels>)
target_include_directories(
  subquad SYSTEM
  PRIVATE ${CMAKE_CUDA_TOOLKIT_INCLUDE_DIRECTORIES}
          "${SUBQUAD_NVIDIA}/cu${SUBQUAD_CUDA_MAJOR}/include"
          "${SUBQUAD_NVIDIA}/cublas/include")
target_link_libraries(subquad PRIVATE ${SUBQUAD_CUDA_LIBRARIES})
# Beside torch in site-packages, for programs that load the library before torch.
set_target_properties(
  subquad
  PROPERTIES
    INSTALL_RPATH
    "$ORIGIN/../torch/lib;$ORIGIN/../nvidia/cu${SUBQUAD_CUDA_MAJOR}/lib")

# Finds torch and defines the target subquad_torch: headers, libraries, ABI. Used
# by our own build and, installed, by find_package(subquad).
#
# find_package(Torch) is not used: with a CUDA build of torch it demands a
# complete CUDA toolkit even of programs that have no CUDA sources.
#
# SUBQUAD_TORCH_ROOT, if set, is a folder with torch's include/ and lib/ (an
# unpacked libtorch, or site-packages/torch); otherwise Python_EXECUTABLE, or the
# first Python found, is asked which torch it imports.
#
# subquad::torch is the library that AOTInductor's packages load by its name: a
# program that runs them links it too.
#
# Sets SUBQUAD_TORCH_ROOT, SUBQUAD_TORCH_VERSION, SUBQUAD_TORCH_CXX11_ABI,
# SUBQUAD_TORCH_CUDA (the toolkit's version; empty for a CPU build, or where
# Python was not asked), or SUBQUAD_TORCH_ERROR, one sentence.
set(SUBQUAD_TORCH_ERROR "")
set(SUBQUAD_TORCH_VERSION "")
set(SUBQUAD_TORCH_CXX11_ABI 1)
set(SUBQUAD_TORCH_CUDA "")
if(SUBQUAD_TORCH_ROOT)
  set(SUBQUAD_TORCH_HEADER
      "${SUBQUAD_TORCH_ROOT}/include/torch/headeronly/version.h")
  if(EXISTS "${SUBQUAD_TORCH_HEADER}")
    file(STRINGS "${SUBQUAD_TORCH_HEADER}" SUBQUAD_TORCH_VERSION
         REGEX "#define TORCH_VERSION_(MAJOR|MINOR|PATCH) ")
    string(REGEX REPLACE "[^;]* ([0-9]+)" "\\1" SUBQUAD_TORCH_VERSION
                         "${SUBQUAD_TORCH_VERSION}")
    string(REPLACE ";" "." SUBQUAD_TORCH_VERSION "${SUBQUAD_TORCH_VERSION}")
  else()
    set(SUBQUAD_TORCH_ERROR
        "SUBQUAD_TORCH_ROOT must be a folder with torch's include/ and lib/, got ${SUBQUAD_TORCH_ROOT}"
    )
  endif()
else()
  if(NOT Python_EXECUTABLE)
    find_package(Python QUIET COMPONENTS Interpreter)
  endif()
  execute_process(
    COMMAND
      "${Python_EXECUTABLE}" -c
      "import os, torch; print(';'.join([torch.__version__, os.path.dirname(torch.__file__), str(int(torch._C._GLIBCXX_USE_CXX11_ABI)), torch.version.cuda or '']))"
    OUTPUT_VARIABLE SUBQUAD_TORCH
    OUTPUT_STRIP_TRAILING_WHITESPACE ERROR_QUIET
    RESULT_VARIABLE SUBQUAD_TORCH_RESULT)
  if(SUBQUAD_TORCH_RESULT EQUAL 0)
    list(GET SUBQUAD_TORCH 0 SUBQUAD_TORCH_VERSION)
    list(GET SUBQUAD_TORCH 1 SUBQUAD_TORCH_ROOT)
    list(GET SUBQUAD_TORCH 2 SUBQUAD_TORCH_CXX11_ABI)
    list(GET SUBQUAD_TORCH 3 SUBQUAD_TORCH_CUDA)
  else()
    set(SUBQUAD_TORCH_ERROR
        "${Python_EXECUTABLE} cannot import torch: set Python_EXECUTABLE to one that can, or SUBQUAD_TORCH_ROOT to a libtorch folder"
    )
  endif()
endif()

if(NOT SUBQUAD_TORCH_ERROR AND NOT TARGET subquad_torch)
  add_library(subquad_torch INTERFACE IMPORTED)
  # Imported, so that warnings of torch's headers are not those of the user.
  target_include_directories(
    subquad_torch
    INTERFACE "${SUBQUAD_TORCH_ROOT}/include"
              "${SUBQUAD_TORCH_ROOT}/include/torch/csrc/api/include")
  target_compile_definitions(
    subquad_torch INTERFACE _GLIBCXX_USE_CXX11_ABI=${SUBQUAD_TORCH_CXX11_ABI})
  # Imported libraries: CMake adds their folder to the run path of programs.
  foreach(library torch_cpu c10 torch)
    add_library(subquad::${library} SHARED IMPORTED)
    set_target_properties(
      subquad::${library}
      PROPERTIES IMPORTED_LOCATION
                 "${SUBQUAD_TORCH_ROOT}/lib/lib${library}.so")
  endforeach()
  target_link_libraries(subquad_torch INTERFACE subquad::torch_cpu subquad::c10)
endif()

# What find_package(subquad) needs, installed inside the Python package:
# subquad_DIR is what `subquad info --cmake-dir` prints.
include(CMakePackageConfigHelpers)
write_basic_package_version_file(
  "${CMAKE_CURRENT_BINARY_DIR}/subquad-config-version.cmake"
  VERSION "${SUBQUAD_VERSION}"
  COMPATIBILITY SameMinorVersion)
install(
  FILES cmake/subquad-config.cmake cmake/SubquadTorch.cmake
        "${CMAKE_CURRENT_BINARY_DIR}/subquad-config-version.cmake"
  DESTINATION subquad/cmake)

# Programs in this build use the library by the name that the package gives it,
# and with the same link options.
add_library(subquad::subquad ALIAS subquad)
target_include_directories(
  subquad INTERFACE "${CMAKE_CURRENT_SOURCE_DIR}/csrc/api")
target_compile_features(subquad INTERFACE cxx_std_20)
target_link_options(subquad INTERFACE LINKER:--no-as-needed)

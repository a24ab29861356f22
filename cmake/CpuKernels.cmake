# Kernel files are compiled once per instruction set; ATen's DispatchStub picks
# the best one that the running CPU has.
if(CMAKE_SYSTEM_PROCESSOR MATCHES "x86_64|AMD64")
  set(SUBQUAD_CPU_CAPABILITIES DEFAULT AVX2 AVX512)
else()
  set(SUBQUAD_CPU_CAPABILITIES DEFAULT)
endif()
set(SUBQUAD_KERNEL_OPTIMIZATION -O3 CACHE STRING
    "Optimisation of the CPU kernels")
set(SUBQUAD_FLAGS_DEFAULT "")
set(SUBQUAD_FLAGS_AVX2 -mavx2 -mfma -mf16c)
set(SUBQUAD_FLAGS_AVX512
    -mavx512f -mavx512bw -mavx512vl -mavx512dq -mfma -mf16c)

# -Wno-(maybe-)uninitialized below: false alarms in GCC's AVX-512 headers;
# -Wno-psabi: a note on vectors as arguments, which never leave a unit.
#
# subquad_cpu_kernels(target sources...): every unit of the target learns which
# variants of a stub exist.
function(subquad_cpu_kernels target)
  foreach(capability IN LISTS SUBQUAD_CPU_CAPABILITIES)
    if(NOT capability STREQUAL "DEFAULT")
      target_compile_definitions(${target}
                                 PRIVATE HAVE_${capability}_CPU_DEFINITION)
    endif()
    foreach(source IN LISTS ARGN)
      get_filename_component(path "${source}" ABSOLUTE)
      set(variant "${CMAKE_CURRENT_BINARY_DIR}/${source}.${capability}.cpp")
      file(GENERATE OUTPUT "${variant}" CONTENT "#include \"${path}\"\n")
      set(optimization ${SUBQUAD_KERNEL_OPTIMIZATION})
      if(SUBQUAD_SANITIZE AND NOT capability STREQUAL "AVX2")
        set(optimization ${SUBQUAD_UNWATCHED_FLAGS})
      endif()
      set_source_files_properties(
        "${variant}"
        PROPERTIES
          COMPILE_OPTIONS
          "${optimization};$<$<CXX_COMPILER_ID:GNU>:-Wno-maybe-uninitialized;-Wno-uninitialized;-Wno-psabi>;-DCPU_CAPABILITY=${capability};-DCPU_CAPABILITY_${capability};${SUBQUAD_FLAGS_${capability}}"
          OBJECT_DEPENDS "${path}")
      target_sources(${target} PRIVATE "${variant}")
    endforeach()
  endforeach()
endfunction()

# libsubquad_emulated.so: the operators' CUDA code on CPU tensors. The units are
# those of the library but for kernels, context and cuBLAS, and of this folder.
# Loaded by Python after the library, whose schemas it copies.
set(SUBQUAD_EMULATED_UNITS
    ops/linear_attention/arguments.cpp
    ops/linear_attention/cuda.cpp
    ops/linear_attention/linear_attention.cpp
    ops/mask_to_spans/cuda.cpp
    ops/mask_to_spans/mask_to_spans.cpp
    ops/merge_attention/cuda.cpp
    ops/merge_attention/merge_attention.cpp
    ops/projection/cuda.cpp
    ops/projection/product.cpp
    ops/projection/projection.cpp
    ops/random_features/arguments.cpp
    ops/random_features/cuda.cpp
    ops/random_features/random_features.cpp
    ops/sequence_pool/arguments.cpp
    ops/sequence_pool/cuda.cpp
    ops/sequence_pool/sequence_pool.cpp
    ops/spans.cpp
    ops/window_attention/arguments.cpp
    ops/window_attention/cuda.cpp
    ops/window_attention/window_attention.cpp
    ops/window_attention_weights/cuda.cpp
    ops/window_attention_weights/window_attention_weights.cpp)
list(TRANSFORM SUBQUAD_EMULATED_UNITS PREPEND "${SUBQUAD_SOURCES}/")

add_library(subquad_emulated SHARED EXCLUDE_FROM_ALL
                             gemm.cpp operators.cpp ${SUBQUAD_EMULATED_UNITS})
target_precompile_headers(subquad_emulated PRIVATE unregistered.h)
set_target_properties(subquad_emulated PROPERTIES CXX_VISIBILITY_PRESET hidden)
# Glue runs once a call: compiling it costs more than it could gain.
target_compile_options(subquad_emulated PRIVATE -O0)
target_link_libraries(subquad_emulated PRIVATE emulated_kernels emulator
                                               subquad_torch)

add_library(emulated_kernels OBJECT EXCLUDE_FROM_ALL)
target_link_libraries(emulated_kernels PRIVATE emulator)
subquad_emulated_kernels(
  emulated_kernels
  linear_attention.cpp
  linear_attention_backward.cpp
  mask_to_spans.cpp
  merge_attention.cpp
  random_features.cpp
  sequence_pool.cpp
  window_attention.cpp
  window_attention_backward.cpp
  window_attention_weights.cpp)

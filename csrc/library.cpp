#include <torch/library.h>

// Every schema of the library. Public operators come first; names that begin
// with an underscore are the forward and backward halves that only the
// library's own autograd formulas call.

TORCH_LIBRARY(subquad, m) {
  m.def(
      "cosformer_attention(Tensor query, Tensor key, Tensor value, *, "
      "bool causal=False, str activation='relu', SymInt? max_length=None, "
      "Tensor? query_position=None, Tensor? key_position=None, "
      "float floor=1e-06, Tensor? lengths=None, "
      "Tensor? starts=None, Tensor? query_lengths=None, "
      "Tensor? query_starts=None, Tensor? order=None, "
      "Tensor? query_order=None, Tensor? cu_seqlens=None, "
      "Tensor? query_cu_seqlens=None) -> Tensor");
  m.def(
      "cosformer_attention_with_state("
      "Tensor query, Tensor key, Tensor value, *, bool causal=False, "
      "str activation='relu', SymInt? max_length=None, "
      "Tensor? query_position=None, Tensor? key_position=None, "
      "float floor=1e-06, Tensor? state_kv=None, "
      "Tensor? state_k=None, Tensor? lengths=None, "
      "Tensor? starts=None, Tensor? query_lengths=None, "
      "Tensor? query_starts=None, Tensor? order=None, "
      "Tensor? query_order=None, Tensor? cu_seqlens=None, "
      "Tensor? query_cu_seqlens=None) "
      "-> (Tensor output, Tensor state_kv, Tensor state_k)");
  m.def(
      "cosine_weights(Tensor position, *, SymInt? max_length=None, "
      "Tensor? lengths=None, ScalarType? dtype=None) -> Tensor");
  m.def(
      "efficient_attention(Tensor query, Tensor key, Tensor value, *, "
      "float? scale=None, Tensor? lengths=None, Tensor? starts=None, "
      "Tensor? query_lengths=None, Tensor? query_starts=None, "
      "Tensor? order=None, Tensor? query_order=None, "
      "Tensor? cu_seqlens=None, Tensor? query_cu_seqlens=None) -> Tensor");
  m.def(
      "linear_attention(Tensor query, Tensor key, Tensor value, *, "
      "bool causal=False, SymInt blindspot=1, bool normalize=True, "
      "float floor=1e-06, float scale=1.0, str query_map='identity', "
      "str key_map='identity', float feature_offset=0.0, "
      "int feature_degree=1, Tensor? query_weight=None, "
      "Tensor? key_weight=None, Tensor? key_log_scale=None, "
      "Tensor? state_kv=None, Tensor? state_k=None, "
      "Tensor? state_log_scale=None, Tensor? lengths=None, "
      "Tensor? starts=None, Tensor? query_lengths=None, "
      "Tensor? query_starts=None, Tensor? order=None, "
      "Tensor? query_order=None, Tensor? cu_seqlens=None, "
      "Tensor? query_cu_seqlens=None) -> Tensor");
  m.def(
      "linear_attention_with_state(Tensor query, Tensor key, Tensor value, *, "
      "bool causal=False, SymInt blindspot=1, bool normalize=True, "
      "float floor=1e-06, float scale=1.0, str query_map='identity', "
      "str key_map='identity', float feature_offset=0.0, "
      "int feature_degree=1, Tensor? query_weight=None, "
      "Tensor? key_weight=None, Tensor? key_log_scale=None, "
      "Tensor? state_kv=None, Tensor? state_k=None, "
      "Tensor? state_log_scale=None, Tensor? lengths=None, "
      "Tensor? starts=None, Tensor? query_lengths=None, "
      "Tensor? query_starts=None, Tensor? order=None, "
      "Tensor? query_order=None, Tensor? cu_seqlens=None, "
      "Tensor? query_cu_seqlens=None) -> (Tensor output, Tensor state_kv, "
      "Tensor state_k, Tensor state_log_scale)");
  m.def(
      "_linear_attention_forward("
      "Tensor query, Tensor key, Tensor value, Tensor? key_log_scale, "
      "Tensor? state_kv, Tensor? state_k, Tensor? state_log_scale, "
      "Tensor? query_weight, Tensor? key_weight, bool causal, "
      "SymInt blindspot, bool normalize, float floor, float scale, "
      "str query_map, str key_map, float feature_offset, "
      "int feature_degree, Tensor? query_spans, Tensor? key_spans, "
      "bool packed, Tensor? query_order, Tensor? key_order) -> (Tensor output, "
      "Tensor denominator, "
      "Tensor state_kv, Tensor state_k, Tensor state_log_scale)");
  m.def(
      "_linear_attention_backward(Tensor? grad_output, "
      "Tensor? grad_state_kv, Tensor? grad_state_k, "
      "Tensor? grad_state_log_scale, Tensor output, Tensor denominator, "
      "Tensor new_state_kv, Tensor new_state_k, "
      "Tensor new_state_log_scale, "
      "Tensor query, Tensor key, Tensor value, Tensor? key_log_scale, "
      "Tensor? state_kv, Tensor? state_k, Tensor? state_log_scale, "
      "Tensor? query_weight, Tensor? key_weight, bool causal, "
      "SymInt blindspot, bool normalize, float floor, float scale, "
      "str query_map, str key_map, float feature_offset, "
      "int feature_degree, Tensor? query_spans, Tensor? key_spans, "
      "bool packed, Tensor? query_order, Tensor? key_order, "
      "bool[7] output_mask) "
      "-> (Tensor grad_query, Tensor grad_key, Tensor grad_value, "
      "Tensor grad_key_log_scale, Tensor grad_state_kv, "
      "Tensor grad_state_k, Tensor grad_state_log_scale)");
  m.def("mask_to_spans(Tensor mask) -> (Tensor lengths, Tensor order)");
  m.def(
      "merge_attention(Tensor output_a, Tensor lse_a, Tensor output_b, "
      "Tensor lse_b) -> (Tensor output, Tensor lse)");
  m.def(
      "_merge_attention_forward(Tensor output_a, Tensor lse_a, "
      "Tensor output_b, Tensor lse_b) -> (Tensor output, Tensor lse)");
  m.def(
      "_merge_attention_backward(Tensor? grad_output, Tensor? grad_lse, "
      "Tensor output_a, Tensor lse_a, Tensor output_b, Tensor lse_b, "
      "bool[4] output_mask) "
      "-> (Tensor grad_output_a, Tensor grad_lse_a, Tensor grad_output_b, "
      "Tensor grad_lse_b)");
  m.def(
      "performer_attention(Tensor query, Tensor key, Tensor value, "
      "Tensor projection, *, bool causal=False, str kind='positive', "
      "float? eps=None, bool stabilizer_gradient=True, float floor=0.1, "
      "float? scale=None, Tensor? query_weight=None, "
      "Tensor? key_weight=None, Tensor? lengths=None, "
      "Tensor? starts=None, Tensor? query_lengths=None, "
      "Tensor? query_starts=None, Tensor? order=None, "
      "Tensor? query_order=None, Tensor? cu_seqlens=None, "
      "Tensor? query_cu_seqlens=None) -> Tensor");
  m.def(
      "performer_attention_with_state(Tensor query, Tensor key, Tensor value, "
      "Tensor projection, *, bool causal=False, str kind='positive', "
      "float? eps=None, bool stabilizer_gradient=True, float floor=0.1, "
      "float? scale=None, Tensor? query_weight=None, "
      "Tensor? key_weight=None, "
      "Tensor? state_kv=None, Tensor? state_k=None, "
      "Tensor? state_log_scale=None, Tensor? lengths=None, "
      "Tensor? starts=None, Tensor? query_lengths=None, "
      "Tensor? query_starts=None, Tensor? order=None, "
      "Tensor? query_order=None, Tensor? cu_seqlens=None, "
      "Tensor? query_cu_seqlens=None) "
      "-> (Tensor output, Tensor state_kv, Tensor state_k, "
      "Tensor state_log_scale)");
  m.def(
      "random_features(Tensor input, Tensor projection, *, "
      "str kind='positive', str stabilizer='token', "
      "bool stabilizer_gradient=True, float eps=0.0, float? scale=None, "
      "Tensor? initial_log_scale=None, Tensor? lengths=None, "
      "Tensor? starts=None, Tensor? order=None, Tensor? cu_seqlens=None) "
      "-> (Tensor features, Tensor log_scale)");
  m.def(
      "_random_features_forward(Tensor input, Tensor projection, "
      "Tensor? initial_log_scale, str kind, str stabilizer, "
      "bool stabilizer_gradient, float eps, float scale, Tensor? spans, "
      "bool packed, Tensor? order) -> (Tensor features, Tensor log_scale)");
  m.def(
      "_random_features_backward(Tensor? grad_features, "
      "Tensor? grad_log_scale, Tensor log_scale, "
      "Tensor input, Tensor projection, Tensor? initial_log_scale, "
      "str kind, str stabilizer, bool stabilizer_gradient, float eps, "
      "float scale, Tensor? spans, bool packed, Tensor? order, "
      "bool[3] output_mask) -> (Tensor grad_input, Tensor grad_projection, "
      "Tensor grad_initial_log_scale)");
  m.def(
      "sequence_pool(Tensor logits, Tensor value, *, "
      "Tensor? lengths=None, Tensor? starts=None, Tensor? order=None, "
      "Tensor? cu_seqlens=None) -> Tensor");
  m.def(
      "sequence_pool_with_lse(Tensor logits, Tensor value, *, "
      "Tensor? lengths=None, Tensor? starts=None, Tensor? order=None, "
      "Tensor? cu_seqlens=None) -> (Tensor output, Tensor lse)");
  m.def(
      "_sequence_pool_forward(Tensor logits, Tensor value, Tensor? spans, "
      "bool packed, Tensor? order) -> (Tensor output, Tensor lse)");
  m.def(
      "_sequence_pool_backward(Tensor? grad_output, Tensor? grad_lse, "
      "Tensor output, Tensor lse, Tensor logits, Tensor value, "
      "Tensor? spans, bool packed, Tensor? order, bool[2] output_mask) "
      "-> (Tensor grad_logits, Tensor grad_value)");
  m.def(
      "window_attention(Tensor query, Tensor key, Tensor value, *, "
      "SymInt block, SymInt left, SymInt right, bool causal=False, "
      "SymInt query_offset=0, Tensor? query_position=None, "
      "Tensor? lengths=None, Tensor? starts=None, "
      "Tensor? query_lengths=None, Tensor? query_starts=None, "
      "Tensor? order=None, Tensor? query_order=None, "
      "Tensor? cu_seqlens=None, Tensor? query_cu_seqlens=None, "
      "Tensor? bias=None, Tensor? key_bias=None, Tensor? relative_key=None, "
      "Tensor? summary_key=None, Tensor? summary_value=None, "
      "Tensor? summary_lengths=None, SymInt summary_offset=0, "
      "SymInt summary_block=0, SymInt summaries_per_block=1, "
      "Tensor? summary_relative_key=None, float dropout=0.0, "
      "Tensor? dropout_state=None, float? scale=None) -> Tensor");
  m.def(
      "window_attention_with_lse(Tensor query, Tensor key, Tensor value, *, "
      "SymInt block, SymInt left, SymInt right, bool causal=False, "
      "SymInt query_offset=0, Tensor? query_position=None, "
      "Tensor? lengths=None, Tensor? starts=None, "
      "Tensor? query_lengths=None, Tensor? query_starts=None, "
      "Tensor? order=None, Tensor? query_order=None, "
      "Tensor? cu_seqlens=None, Tensor? query_cu_seqlens=None, "
      "Tensor? bias=None, Tensor? key_bias=None, Tensor? relative_key=None, "
      "Tensor? summary_key=None, Tensor? summary_value=None, "
      "Tensor? summary_lengths=None, SymInt summary_offset=0, "
      "SymInt summary_block=0, SymInt summaries_per_block=1, "
      "Tensor? summary_relative_key=None, float dropout=0.0, "
      "Tensor? dropout_state=None, float? scale=None) "
      "-> (Tensor output, Tensor lse)");
  m.def("projection(Tensor input, Tensor weight, Tensor? bias=None) -> Tensor");
  m.def(
      "_projection_forward(Tensor input, Tensor weight, Tensor? bias, "
      "bool? onednn=None) -> Tensor");
  m.def(
      "_projection_backward(Tensor grad_output, Tensor? input, "
      "Tensor? weight, bool[3] output_mask, bool? onednn=None) "
      "-> (Tensor grad_input, Tensor grad_weight, Tensor grad_bias)");
  m.def(
      "_window_attention_forward(Tensor query, Tensor key, Tensor value, "
      "Tensor? bias, Tensor? key_bias, Tensor? relative_key, "
      "Tensor? summary_key, Tensor? summary_value, "
      "Tensor? summary_relative_key, "
      "SymInt block, SymInt left, SymInt right, bool causal, "
      "SymInt query_offset, Tensor? query_position, "
      "Tensor? query_spans, Tensor? key_spans, bool packed, "
      "Tensor? query_order, Tensor? key_order, "
      "Tensor? summary_lengths, SymInt summary_offset, SymInt summary_block, "
      "SymInt summaries_per_block, float dropout, Tensor? dropout_state, "
      "float scale) -> (Tensor output, Tensor lse)");
  m.def(
      "_window_attention_backward(Tensor? grad_output, Tensor? grad_lse, "
      "Tensor output, Tensor lse, "
      "Tensor query, Tensor key, Tensor value, "
      "Tensor? bias, Tensor? key_bias, Tensor? relative_key, "
      "Tensor? summary_key, Tensor? summary_value, "
      "Tensor? summary_relative_key, "
      "SymInt block, SymInt left, SymInt right, bool causal, "
      "SymInt query_offset, Tensor? query_position, "
      "Tensor? query_spans, Tensor? key_spans, bool packed, "
      "Tensor? query_order, Tensor? key_order, "
      "Tensor? summary_lengths, SymInt summary_offset, SymInt summary_block, "
      "SymInt summaries_per_block, float dropout, Tensor? dropout_state, "
      "float scale, bool[9] output_mask) "
      "-> (Tensor grad_query, Tensor grad_key, Tensor grad_value, "
      "Tensor grad_bias, Tensor grad_key_bias, Tensor grad_relative_key, "
      "Tensor grad_summary_key, Tensor grad_summary_value, "
      "Tensor grad_summary_relative_key)");
  m.def(
      "window_attention_weights(Tensor query, Tensor key, Tensor lse, *, "
      "SymInt block, SymInt left, SymInt right, bool causal=False, "
      "SymInt query_offset=0, Tensor? query_position=None, "
      "Tensor? lengths=None, Tensor? starts=None, "
      "Tensor? query_lengths=None, Tensor? query_starts=None, "
      "Tensor? order=None, Tensor? query_order=None, "
      "Tensor? cu_seqlens=None, Tensor? query_cu_seqlens=None, "
      "Tensor? bias=None, Tensor? key_bias=None, Tensor? relative_key=None, "
      "float? scale=None) -> Tensor");
  m.def(
      "_window_attention_weights_forward(Tensor query, Tensor key, Tensor lse, "
      "Tensor? bias, Tensor? key_bias, Tensor? relative_key, "
      "SymInt block, SymInt left, SymInt right, bool causal, "
      "SymInt query_offset, Tensor? query_position, "
      "Tensor? query_spans, Tensor? key_spans, bool packed, "
      "Tensor? query_order, Tensor? key_order, float scale) -> Tensor");
  m.def(
      "_window_attention_weights_backward(Tensor grad, Tensor weights, "
      "Tensor query, Tensor key, Tensor lse, "
      "Tensor? bias, Tensor? key_bias, Tensor? relative_key, "
      "SymInt block, SymInt left, SymInt right, bool causal, "
      "SymInt query_offset, Tensor? query_position, "
      "Tensor? query_spans, Tensor? key_spans, bool packed, "
      "Tensor? query_order, Tensor? key_order, float scale, "
      "bool[6] output_mask) "
      "-> (Tensor grad_query, Tensor grad_key, Tensor grad_lse, "
      "Tensor grad_bias, Tensor grad_key_bias, Tensor grad_relative_key)");
}

#include <torch/library.h>

// Every schema of the library. Public operators come first; names that begin
// with an underscore are the forward and backward halves that only the
// library's own autograd formulas call.

TORCH_LIBRARY(subquad, m) {
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

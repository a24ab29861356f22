#include "launcher.h"
#include "operands.h"
#include "ops/random_features/cuda_kernel.h"
#include "ops/random_features/kernel_backward.cuh"
#include "ops/random_features/kernel_forward.cuh"

namespace subquad {

namespace {

Operands operands_of(const RandomFeaturesParams& params, ScalarKind dtype) {
  Operands operands(params.batch, params.heads, params.length, dtype);
  operands.input("input", params.input, params.input_stride, params.head_dim);
  operands.dense(
      "projection",
      params.projection,
      params.projection_heads * params.projections * params.head_dim,
      true);
  operands.bytes(
      "initial_log_scale",
      params.initial_log_scale,
      params.rows * params.heads * acc_size_of(dtype),
      true);
  operands.indices("spans", params.spans, 2 * params.rows);
  operands.indices("order", params.order, params.batch * params.length);
  return operands;
}

} // namespace

int launch_random_features_forward(
    const RandomFeaturesParams& params,
    ScalarKind dtype,
    void* /* stream */) {
  Operands operands = operands_of(params, dtype);
  operands.output(
      "output", params.output, params.output_stride, params.features);
  operands.lines("log_scale", params.log_scale, false);
  return launch_random_features_forward(emu::Launcher(), params, dtype);
}

int launch_random_features_backward(
    const RandomFeaturesParams& params,
    const RandomFeaturesGradients& gradients,
    void* workspace,
    ScalarKind dtype,
    void* /* stream */) {
  Operands operands = operands_of(params, dtype);
  operands.lines("log_scale", params.log_scale, true);
  operands.input(
      "grad_output",
      gradients.grad_output,
      gradients.grad_output_stride,
      params.features);
  operands.lines("grad_log_scale", gradients.grad_log_scale, true);
  operands.output(
      "grad_input",
      gradients.grad_input,
      gradients.grad_input_stride,
      params.head_dim);
  operands.dense(
      "grad_projection",
      gradients.grad_projection,
      params.projection_heads * params.projections * params.head_dim,
      false);
  operands.bytes(
      "grad_initial_log_scale",
      gradients.grad_initial_log_scale,
      params.rows * params.heads * acc_size_of(dtype),
      false);
  operands.bytes(
      "workspace",
      workspace,
      random_features::backward_workspace(
          params, gradients, acc_size_of(dtype), nullptr)
          .bytes,
      false);
  return launch_random_features_backward(
      emu::Launcher(), params, gradients, workspace, dtype);
}

} // namespace subquad

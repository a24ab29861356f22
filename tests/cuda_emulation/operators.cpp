#include <ATen/core/dispatch/Dispatcher.h>
#include <torch/library.h>

#include <string>

#include "cuda/context.h"
#include "launcher.h"
#include "report.h"

// The emulated operators: the schemas of the library's own that kernels stand
// behind, with CPU tensors for CUDA tensors.
namespace subquad {

namespace cuda {

void* current_stream() {
  return nullptr;
}

void check(int error) {
  const std::string reports = emu::reports_text();
  emu::clear_reports();
  TORCH_CHECK(
      error == 0 && reports.empty(), "emulator: error ", error, "\n", reports);
}

} // namespace cuda

namespace {

void set_order(int64_t threads, int64_t blocks, int64_t seed) {
  emu::options().thread_order = static_cast<emu::Order>(threads);
  emu::options().block_order = static_cast<emu::Order>(blocks);
  emu::options().seed = static_cast<unsigned>(seed);
}

TORCH_LIBRARY(subquad_emulated, m) {
  // 0: forward, 1: reversed, 2: shuffled
  m.def("set_order(int threads, int blocks, int seed) -> ()", &set_order);
  auto& dispatcher = c10::Dispatcher::singleton();
  const std::string ours = "subquad::";
  for (const c10::OperatorName& name : dispatcher.getAllOpNames()) {
    if (!name.name.starts_with(ours)) {
      continue;
    }
    const std::string op = name.name.substr(ours.size());
    if (op.starts_with("_") || op == "mask_to_spans") {
      m.def(dispatcher.findSchemaOrThrow(name.name.c_str(), "")
                .schema()
                .cloneWithName("subquad_emulated::" + op, ""));
    }
  }
}

} // namespace

} // namespace subquad

#pragma once

#include <cstddef>
#include <cstdint>
#include <tuple>

#include "buffers.h"
#include "vector_types.h"

namespace emu {

enum class Order { kForward, kReversed, kShuffled };

struct Options {
  Order thread_order = Order::kForward; // of warps and of lanes
  Order block_order = Order::kForward;
  unsigned seed = 0;
  int max_reports = 8;         // of one launch
  bool registered_only = true; // other global memory must not be touched
  bool statistics = false;     // fill traffic() of statistics.h
  size_t max_shared_bytes = 163 * 1024; // of one block: compute capability 8.0
};

// Of the launches that follow.
Options& options();

// cudaErrorInvalidConfiguration, cudaErrorLaunchFailure.
constexpr int kInvalidConfiguration = 9;
constexpr int kLaunchFailure = 719;

int launch(
    dim3 grid,
    dim3 block,
    size_t shared_bytes,
    void (*kernel)(void*),
    void* argument,
    size_t argument_bytes);

// The host dispatch's launcher: runs the grid to its end and returns 0, or an
// error after any report.
struct Launcher {
  template <class... Params, class... Args>
  int operator()(
      void (*kernel)(Params...),
      dim3 grid,
      dim3 block,
      size_t shared_bytes,
      Args&&... args) const {
    Call<Params...> call{kernel, {static_cast<Params>(args)...}};
    // Every thread copies its arguments from here.
    const Registration arguments("arguments", &call, sizeof call, true);
    return launch(
        grid, block, shared_bytes, &run<Params...>, &call, sizeof call);
  }

 private:
  template <class... Params>
  struct Call {
    void (*kernel)(Params...);
    std::tuple<Params...> arguments;
  };

  template <class... Params>
  static void run(void* argument) {
    const auto& call = *static_cast<const Call<Params...>*>(argument);
    std::apply(call.kernel, call.arguments);
  }
};

} // namespace emu

#pragma once

#include <cstddef>
#include <cstdint>
#include <tuple>
#include <utility>

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
    void* argument);

// The host dispatch's launcher: runs the grid to its end and returns 0, or an
// error after any report.
struct Launcher {
  template <class... Params, class... Args>
  __attribute__((no_sanitize("thread"))) int operator()(
      void (*kernel)(Params...),
      dim3 grid,
      dim3 block,
      size_t shared_bytes,
      Args&&... args) const {
    Call<Params...> call{kernel, {static_cast<Params>(args)...}};
    return launch(
        grid,
        block,
        shared_bytes,
        &run<std::index_sequence_for<Params...>, Params...>,
        &call);
  }

 private:
  template <class... Params>
  struct Call {
    void (*kernel)(Params...);
    std::tuple<Params...> arguments;
  };

  template <class Indices, class... Params>
  __attribute__((no_sanitize("thread"))) static void run(void* argument) {
    Apply<Indices>::run(*static_cast<const Call<Params...>*>(argument));
  }

  template <class Indices>
  struct Apply;

  // std::apply would be instrumented, and its reads of the arguments reported.
  template <size_t... Indices>
  struct Apply<std::index_sequence<Indices...>> {
    template <class Call>
    __attribute__((no_sanitize("thread"))) static void run(const Call& call) {
      call.kernel(std::get<Indices>(call.arguments)...);
    }
  };
};

} // namespace emu

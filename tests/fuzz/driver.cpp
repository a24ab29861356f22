#include <charconv>
#include <csignal>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <exception>
#include <random>
#include <vector>

// Runs a fuzz target on inputs from a seeded generator, for compilers without
// libFuzzer and for a test that is the same everywhere:
//
//   fuzz_arguments SEED RUNS [FIRST]
//
// Run number n of a seed always has the same input; a failure names it.

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size);

// A finding ends in abort(), where the run is named. torch's caches look like
// leaks, and torch itself says when memory is out.
#define SUBQUAD_SANITIZER_HOOK \
  extern "C" __attribute__((visibility("default"))) const char*
SUBQUAD_SANITIZER_HOOK __asan_default_options() {
  return "abort_on_error=1:detect_leaks=0:allocator_may_return_null=1";
}
SUBQUAD_SANITIZER_HOOK __ubsan_default_options() {
  return "abort_on_error=1:print_stacktrace=1";
}

namespace {

uint64_t seed = 0;
uint64_t run = 0;

extern "C" void name_the_run(int /* signal */) {
  std::fprintf(
      stderr,
      "failed: seed %llu, run %llu\n",
      static_cast<unsigned long long>(seed),
      static_cast<unsigned long long>(run));
  std::_Exit(1);
}

bool read_number(const char* text, uint64_t& number) {
  const char* end = text + std::strlen(text);
  const auto result = std::from_chars(text, end, number);
  return result.ec == std::errc() && result.ptr == end;
}

} // namespace

int main(int argc, char** argv) {
  uint64_t runs = 0;
  uint64_t first = 0;
  if (argc < 3 || argc > 4 || !read_number(argv[1], seed) ||
      !read_number(argv[2], runs) ||
      (argc == 4 && !read_number(argv[3], first))) {
    std::fprintf(stderr, "usage: %s SEED RUNS [FIRST]\n", argv[0]);
    return 2;
  }
  std::signal(SIGABRT, &name_the_run);
  std::vector<uint8_t> input;
  for (run = first; run < first + runs; ++run) {
    std::seed_seq sequence{seed, run};
    std::mt19937 numbers(sequence);
    input.resize(64 + numbers() % 192);
    for (uint8_t& byte : input) {
      byte = static_cast<uint8_t>(numbers());
    }
    try {
      LLVMFuzzerTestOneInput(input.data(), input.size());
    } catch (const std::exception& error) {
      std::fprintf(stderr, "%s\n", error.what());
      name_the_run(SIGABRT);
    }
  }
  std::printf(
      "%llu runs of seed %llu\n",
      static_cast<unsigned long long>(runs),
      static_cast<unsigned long long>(seed));
}

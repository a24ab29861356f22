#include <pybind11/pybind11.h>

#include "common/index.h"
#include "common/philox.h"

// Introspection for tests and tools: plain numbers, never tensors. Nothing on
// the compute path imports this module.
namespace py = pybind11;

PYBIND11_MODULE(_plan, m) {
  m.doc() = "Index rules of the operators, as the kernels compute them.";
  m.attr("version") = SUBQUAD_VERSION;
  m.def(
      "window_keys",
      [](int64_t position,
         int64_t block,
         int64_t left,
         int64_t right,
         bool causal,
         int64_t length) {
        const subquad::Range range = subquad::window_keys(
            position, {block, left, right, causal}, length);
        return py::make_tuple(range.begin, range.end);
      },
      py::arg("position"),
      py::arg("block"),
      py::arg("left"),
      py::arg("right"),
      py::arg("causal"),
      py::arg("length"),
      "Keys [begin, end) that a query at `position` sees in a row of `length` "
      "keys.");
  m.def(
      "window_origin",
      [](int64_t position, int64_t block, int64_t left) {
        return subquad::window_origin(position, {block, left, 0, false});
      },
      py::arg("position"),
      py::arg("block"),
      py::arg("left"),
      "Key index of slot 0 of the window of a query at `position`.");
  m.def(
      "summary_limit",
      [](int64_t position,
         int64_t offset,
         int64_t block,
         int64_t per_block,
         int64_t count) {
        return subquad::summary_limit(
            position, {offset, block, per_block}, count);
      },
      py::arg("position"),
      py::arg("offset"),
      py::arg("block"),
      py::arg("per_block"),
      py::arg("count"),
      "How many of `count` summaries a query at `position` sees.");
  m.def(
      "philox",
      [](uint64_t seed, uint64_t offset, uint64_t counter) {
        const subquad::PhiloxWords words =
            subquad::philox(seed, offset, counter);
        return py::make_tuple(
            words.word[0], words.word[1], words.word[2], words.word[3]);
      },
      py::arg("seed"),
      py::arg("offset"),
      py::arg("counter"),
      "The four 32-bit words of Philox4x32-10.");
}

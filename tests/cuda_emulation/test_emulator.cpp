#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <string>
#include <vector>

#include "emulator.h"
#include "layouts.h"
#include "seeded_bugs.h"
#include "traffic_kernels.h"

namespace {

using emu::Order;

class Emulator : public testing::Test {
 protected:
  void SetUp() override {
    emu::options() = emu::Options{};
    emu::clear_reports();
    emu::clear_traffic();
  }
};

class Mistake : public Emulator,
                public testing::WithParamInterface<SeededBug> {};

TEST_P(Mistake, IsReportedInEveryOrder) {
  for (const Order order :
       {Order::kForward, Order::kReversed, Order::kShuffled}) {
    emu::options().thread_order = order;
    emu::clear_reports();
    std::vector<float> output;
    EXPECT_EQ(GetParam().launch(true, output), emu::kLaunchFailure);
    const auto& reports = emu::reports();
    EXPECT_TRUE(std::any_of(
        reports.begin(),
        reports.end(),
        [](const emu::Report& report) {
          return report.kind == GetParam().kind;
        }))
        << emu::name(GetParam().kind) << " is not in\n"
        << emu::reports_text();
  }
}

TEST_P(Mistake, HasATwinWithoutReports) {
  std::vector<float> expected;
  for (const Order order :
       {Order::kForward, Order::kReversed, Order::kShuffled}) {
    emu::options().thread_order = order;
    emu::options().block_order = order;
    std::vector<float> output;
    EXPECT_EQ(GetParam().launch(false, output), 0) << emu::reports_text();
    EXPECT_EQ(emu::reports_text(), "");
    if (order == Order::kForward) {
      expected = output;
    }
    EXPECT_EQ(output, expected);
  }
}

INSTANTIATE_TEST_SUITE_P(
    Seeded,
    Mistake,
    testing::ValuesIn(seeded_bugs()),
    [](const auto& info) { return std::string(info.param.name); });

std::vector<float> numbers(int count, int step) {
  std::vector<float> values(count);
  for (int i = 0; i < count; ++i) {
    values[i] = static_cast<float>(i * step % 31 - 15) / 8;
  }
  return values;
}

TEST_F(Emulator, MultipliesByTheLayoutsOfPtx) {
  const std::vector<float> a = numbers(16 * 16, 7);
  const std::vector<float> b = numbers(16 * 8, 11);
  std::vector<float> expected(16 * 8);
  for (int row = 0; row < 16; ++row) {
    for (int column = 0; column < 8; ++column) {
      for (int k = 0; k < 16; ++k) {
        // Exact: few bits each.
        expected[8 * row + column] += a[16 * row + k] * b[8 * k + column];
      }
    }
  }
  for (const bool ldmatrix : {false, true}) {
    EXPECT_EQ(product_float16(a, b, ldmatrix), expected);
    EXPECT_EQ(product_bfloat16(a, b, ldmatrix), expected);
  }
  EXPECT_EQ(emu::reports_text(), "");
}

TEST_F(Emulator, RoundsHalfTypesToNearestEven) {
  EXPECT_EQ(__float2half_rn(1.0f).bits, 0x3c00);
  EXPECT_EQ(__float2half_rn(2049.0f).bits, __float2half_rn(2048.0f).bits);
  EXPECT_EQ(__float2half_rn(2051.0f).bits, __float2half_rn(2052.0f).bits);
  EXPECT_EQ(__float2half_rn(65519.0f).bits, 0x7bff);
  EXPECT_EQ(__float2half_rn(65520.0f).bits, 0x7c00);
  EXPECT_EQ(__float2half_rn(0x1p-24f).bits, 1);
  EXPECT_EQ(__float2half_rn(0x1p-25f).bits, 0);
  EXPECT_EQ(__float2half_rn(0x1.8p-24f).bits, 2);
  EXPECT_EQ(__float2half_rn(-0.0f).bits, 0x8000);
  EXPECT_EQ(__float2bfloat16_rn(1.0f).bits, 0x3f80);
  EXPECT_EQ(__float2bfloat16_rn(0x1.01p0f).bits, 0x3f80);
  EXPECT_EQ(__float2bfloat16_rn(0x1.03p0f).bits, 0x3f82);
  for (int bits = 0; bits < 0x10000; ++bits) {
    __half half;
    half.bits = static_cast<uint16_t>(bits);
    if (std::isnan(__half2float(half))) {
      EXPECT_TRUE(std::isnan(__half2float(__half(__half2float(half)))));
    } else {
      EXPECT_EQ(__float2half_rn(__half2float(half)).bits, bits);
    }
  }
  const float infinity = std::numeric_limits<float>::infinity();
  EXPECT_EQ(__half2float(__half(infinity)), infinity);
  EXPECT_EQ(subquad::cuda::exp2_approx(-infinity), 0.0f);
}

double worst_excess(emu::Space space, bool writes) {
  double worst = 0;
  for (const emu::Traffic& traffic : emu::traffic()) {
    if (traffic.space == space && traffic.writes == writes) {
      worst = std::max(worst, traffic.excess());
    }
  }
  return worst;
}

TEST_F(Emulator, CountsBankConflicts) {
  emu::options().statistics = true;
  EXPECT_EQ(transpose_tile(32, 1), 0) << emu::reports_text();
  EXPECT_EQ(worst_excess(emu::Space::kShared, false), 32);
  EXPECT_EQ(worst_excess(emu::Space::kShared, true), 1);
  emu::clear_traffic();
  EXPECT_EQ(transpose_tile(33, 1), 0) << emu::reports_text();
  EXPECT_EQ(worst_excess(emu::Space::kShared, false), 1);
}

TEST_F(Emulator, CountsSectors) {
  emu::options().statistics = true;
  EXPECT_EQ(transpose_tile(33, 1), 0) << emu::reports_text();
  EXPECT_EQ(worst_excess(emu::Space::kGlobal, true), 1);
  EXPECT_EQ(worst_excess(emu::Space::kGlobal, false), 1);
  emu::clear_traffic();
  EXPECT_EQ(transpose_tile(33, 8), 0) << emu::reports_text();
  EXPECT_EQ(worst_excess(emu::Space::kGlobal, true), 8);
}

TEST_F(Emulator, SaysWhatAndWhere) {
  std::vector<float> output;
  for (const SeededBug& bug : seeded_bugs()) {
    if (bug.kind == emu::Kind::kOutOfBounds || bug.kind == emu::Kind::kRace) {
      bug.launch(true, output);
    }
  }
  const std::string text = emu::reports_text();
  for (const char* part :
       {"out of bounds: read of 4 bytes at shared memory + 256 (of 256)",
        "out of bounds: write of 4 bytes at shared memory - 4 (of 256)",
        "out of bounds: read of 4 bytes at in + 768 (of 768 bytes)",
        "out of bounds: write of 4 bytes at out - 4",
        "seeded_bugs.cpp:",
        "global_read_outside",
        "matrix_without_barrier",
        "; block (2, 0, 0), thread (63, 0, 0)"}) {
    EXPECT_NE(text.find(part), std::string::npos) << part << " in\n" << text;
  }
  // The kernel's line, not that of the function it calls.
  EXPECT_EQ(text.find("primitives.h"), std::string::npos) << text;
}

TEST_F(Emulator, RefusesLaunchesThatNoGpuTakes) {
  void (*kernel)() = [] {};
  const emu::Launcher launch;
  EXPECT_EQ(launch(kernel, dim3(1), dim3(1024), 163 * 1024), 0);
  for (const auto& [grid, block, bytes] :
       std::vector<std::tuple<dim3, dim3, size_t>>{
           {dim3(0), dim3(32), 0},
           {dim3(1, 65536), dim3(32), 0},
           {dim3(1, 1, 65536), dim3(32), 0},
           {dim3(1u << 31), dim3(32), 0},
           {dim3(1), dim3(0), 0},
           {dim3(1), dim3(1024, 2), 0},
           {dim3(1), dim3(1, 1, 65), 0},
           {dim3(1), dim3(32), 163 * 1024 + 1}}) {
    emu::clear_reports();
    EXPECT_EQ(launch(kernel, grid, block, bytes), emu::kInvalidConfiguration);
    ASSERT_EQ(emu::reports().size(), 1u);
    EXPECT_EQ(emu::reports()[0].kind, emu::Kind::kLaunch);
  }
}

TEST_F(Emulator, LimitsReports) {
  emu::options().max_reports = 0;
  std::vector<float> output;
  EXPECT_EQ(seeded_bugs()[0].launch(true, output), emu::kLaunchFailure);
  EXPECT_TRUE(emu::reports().empty());
}

} // namespace

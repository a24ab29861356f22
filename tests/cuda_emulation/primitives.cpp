#include "primitives.h"

#include <cstring>

#include "access.h"
#include "async_copy.h"

namespace emu {
namespace {

struct MatrixLane {
  const unsigned char* row;
  uint32_t* result;
  const void* pc;
};

uint16_t element(const Meeting& meeting, int matrix, int row, int column) {
  const int lane = 8 * matrix + row;
  uint16_t value;
  std::memcpy(
      &value,
      static_cast<const MatrixLane*>(meeting.operand[lane])->row + 2 * column,
      sizeof value);
  return value;
}

template <bool kTransposed>
void load_lanes(const Meeting& meeting) {
  for (int lane = 0; lane < kWarpSize; ++lane) {
    const auto& operand =
        *static_cast<const MatrixLane*>(meeting.operand[lane]);
    for (int matrix = 0; matrix < 4; ++matrix) {
      uint32_t pair = 0;
      for (int half = 0; half < 2; ++half) {
        const int row = lane / 4;
        const int column = 2 * (lane % 4) + half;
        const uint32_t bits = kTransposed
            ? element(meeting, matrix, column, row)
            : element(meeting, matrix, row, column);
        pair |= bits << 16 * half;
      }
      operand.result[matrix] = pair;
    }
  }
}

struct FragmentLane {
  float* c;
  const uint32_t* a;
  const uint32_t* b;
};

template <class T>
void unpack(uint32_t pair, float& first, float& second) {
  T halves[2];
  std::memcpy(halves, &pair, sizeof pair);
  first = static_cast<float>(halves[0]);
  second = static_cast<float>(halves[1]);
}

// The layouts of PTX's mma.m16n8k16, as cuda/prim.cuh states them.
template <class T>
void multiply_lanes(const Meeting& meeting) {
  float a[16][16];
  float b[16][8];
  for (int lane = 0; lane < kWarpSize; ++lane) {
    const auto& operand =
        *static_cast<const FragmentLane*>(meeting.operand[lane]);
    const int g = lane / 4;
    const int t = 2 * (lane % 4);
    for (int i = 0; i < 4; ++i) {
      float* pair = &a[g + i % 2 * 8][t + i / 2 * 8];
      unpack<T>(operand.a[i], pair[0], pair[1]);
    }
    for (int i = 0; i < 2; ++i) {
      const int row = t + 8 * i;
      unpack<T>(operand.b[i], b[row][g], b[row + 1][g]);
    }
  }
  float product[16][8] = {};
  for (int row = 0; row < 16; ++row) {
    for (int k = 0; k < 16; ++k) {
      for (int column = 0; column < 8; ++column) {
        product[row][column] += a[row][k] * b[k][column];
      }
    }
  }
  for (int lane = 0; lane < kWarpSize; ++lane) {
    float* c = static_cast<const FragmentLane*>(meeting.operand[lane])->c;
    const int g = lane / 4;
    const int t = 2 * (lane % 4);
    for (int i = 0; i < 4; ++i) {
      c[i] += product[g + i / 2 * 8][t + i % 2];
    }
  }
}

template <class T>
T add(T* address, T value, const void* pc) {
  check_access(address, sizeof(T), Access::kAtomic, pc);
  const T old = *address;
  *address = old + value;
  return old;
}

} // namespace

void load_matrices(
    uint32_t (&r)[4],
    const void* row,
    bool transposed,
    const Site& site) {
  const void* pc = __builtin_return_address(0);
  check_space(row, true, pc);
  check_aligned(row, 16, pc);
  check_access(row, 16, Access::kWarpRead, pc);
  MatrixLane operand{static_cast<const unsigned char*>(row), r, pc};
  meet(
      site,
      transposed ? "ldmatrix_x4_trans" : "ldmatrix_x4",
      0xffffffffu,
      &operand,
      transposed ? &load_lanes<true> : &load_lanes<false>);
}

void multiply_fragments(
    float (&c)[4],
    const uint32_t (&a)[4],
    const uint32_t (&b)[2],
    HalfType type,
    const Site& site) {
  FragmentLane operand{c, a, b};
  meet(
      site,
      "mma_m16n8k16",
      0xffffffffu,
      &operand,
      type == HalfType::kFloat16 ? &multiply_lanes<__half>
                                 : &multiply_lanes<__nv_bfloat16>);
}

void wait_async(int newest_groups) {
  wait_async_copies(newest_groups);
}

} // namespace emu

float atomicAdd(float* address, float value) {
  return emu::add(address, value, __builtin_return_address(0));
}
double atomicAdd(double* address, double value) {
  return emu::add(address, value, __builtin_return_address(0));
}
int atomicAdd(int* address, int value) {
  return emu::add(address, value, __builtin_return_address(0));
}
unsigned atomicAdd(unsigned* address, unsigned value) {
  return emu::add(address, value, __builtin_return_address(0));
}
unsigned long long atomicAdd(
    unsigned long long* address,
    unsigned long long value) {
  return emu::add(address, value, __builtin_return_address(0));
}

namespace subquad::cuda {

void ld128(void* registers, const void* address) {
  const void* pc = __builtin_return_address(0);
  emu::check_aligned(address, 16, pc);
  emu::check_access(address, 16, emu::Access::kRead, pc);
  emu::check_access(registers, 16, emu::Access::kWrite, pc);
  std::memcpy(registers, address, 16);
}

void st128(void* address, const void* registers) {
  const void* pc = __builtin_return_address(0);
  emu::check_aligned(address, 16, pc);
  emu::check_access(address, 16, emu::Access::kWrite, pc);
  emu::check_access(registers, 16, emu::Access::kRead, pc);
  std::memcpy(address, registers, 16);
}

void cp_async16(void* shared, const void* global, int bytes) {
  emu::queue_async_copy(shared, global, bytes, __builtin_return_address(0));
}

void cp_async_commit() {
  emu::commit_async_copies();
}

} // namespace subquad::cuda

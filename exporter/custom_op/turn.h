// A run of RotateAdaDim. Sums have one order for all instruction sets. Only tile_kernels.cc includes this.
#ifndef ADADIM_TURN_H_
#define ADADIM_TURN_H_

#include "simd.h"

namespace adadim {
namespace {

// A matrix in memory, its rows filled up to whole registers.
struct Grid {
  float* at;
  int64_t stride;
};

// Sylvester's part of a factor times the rows of a matrix: sums and differences of rows 2^i * core apart, two i at a time.
void Butterflies(const Factor& factor, const Grid& grid) {
  const int64_t size = factor.order * grid.stride;
  int64_t apart = factor.core * grid.stride;
  for (; 4 * apart <= size; apart *= 4) {
    for (int64_t first = 0; first < size; first += 4 * apart) {
      float* const part = grid.at + first;
      for (int64_t i = 0; i < apart; i += kLanes) {
        const Floats a = hn::Load(df, part + i), b = hn::Load(df, part + apart + i);
        const Floats c = hn::Load(df, part + 2 * apart + i), d = hn::Load(df, part + 3 * apart + i);
        const Floats ab = hn::Add(a, b), a_b = hn::Sub(a, b), cd = hn::Add(c, d), c_d = hn::Sub(c, d);
        hn::Store(hn::Add(ab, cd), df, part + i);
        hn::Store(hn::Add(a_b, c_d), df, part + apart + i);
        hn::Store(hn::Sub(ab, cd), df, part + 2 * apart + i);
        hn::Store(hn::Sub(a_b, c_d), df, part + 3 * apart + i);
      }
    }
  }
  if (2 * apart > size) return;
  for (int64_t i = 0; i < apart; i += kLanes) {
    const Floats a = hn::Load(df, grid.at + i), b = hn::Load(df, grid.at + apart + i);
    hn::Store(hn::Add(a, b), df, grid.at + i);
    hn::Store(hn::Sub(a, b), df, grid.at + apart + i);
  }
}

// The 16 sums of +-z0 +-z1 +-z2 +-z3: bit i of a sum's number is set where z[i] is taken off.
HWY_INLINE void SumsOf4(const Floats z[4], float* sums) {
  const Floats pairs[4] = {hn::Add(z[0], z[1]), hn::Sub(z[1], z[0]), hn::Sub(z[0], z[1]), hn::Neg(hn::Add(z[0], z[1]))};
  const Floats others[2] = {hn::Add(z[2], z[3]), hn::Sub(z[3], z[2])};
#pragma GCC unroll 4
  for (int64_t i = 0; i < 4; ++i) {
    hn::Store(hn::Add(pairs[i], others[0]), df, sums + i * kLanes);
    hn::Store(hn::Add(pairs[i], others[1]), df, sums + (4 + i) * kLanes);
    hn::Store(hn::Sub(pairs[i], others[1]), df, sums + (8 + i) * kLanes);
    hn::Store(hn::Sub(pairs[i], others[0]), df, sums + (12 + i) * kLanes);
  }
}

// A factor's core times kLanes columns: four rows' sums are made once, and each product is a sum of such sums.
void CoreTimes(const Factor& factor, float* column, int64_t stride, float* sums) {
  const int64_t fours = CeilDiv(factor.core, 4);
  for (int64_t four = 0; four < fours; ++four) {
    Floats z[4];
    for (int64_t i = 0; i < 4; ++i) {
      const int64_t row = 4 * four + i;
      z[i] = row < factor.core ? hn::Load(df, column + row * stride) : hn::Zero(df);
    }
    SumsOf4(z, sums + four * 16 * kLanes);
  }
  const uint8_t* number = factor.rows;
  for (int64_t row = 0; row < factor.core; ++row) {
    Floats sum = hn::Load(df, sums + *number++ * kLanes);
    for (int64_t four = 1; four < fours; ++four) sum = hn::Add(sum, hn::Load(df, sums + (four * 16 + *number++) * kLanes));
    hn::Store(sum, df, column + row * stride);
  }
}

// A factor times a matrix of as many rows as it has, in place.
void Times(const Factor& factor, const Grid& grid, float* sums) {
  if (factor.rows != nullptr) {
    for (int64_t first = 0; first < factor.order; first += factor.core) {
      for (int64_t lane = 0; lane < grid.stride; lane += kLanes) {
        CoreTimes(factor, grid.at + first * grid.stride + lane, grid.stride, sums);
      }
    }
  }
  Butterflies(factor, grid);
}

// to = the transpose of `from`, whose first `rows` rows and `columns` columns are wanted; by whole fours.
void Transpose(const Grid& from, int64_t rows, int64_t columns, const Grid& to) {
  const hn::Full128<float> d4;
  for (int64_t row = 0; row < rows; row += 4) {
    for (int64_t column = 0; column < columns; column += 4) {
      const float* in = from.at + row * from.stride + column;
      const auto a = hn::Load(d4, in), b = hn::Load(d4, in + from.stride);
      const auto c = hn::Load(d4, in + 2 * from.stride), d = hn::Load(d4, in + 3 * from.stride);
      const auto ac = hn::InterleaveLower(d4, a, c), bd = hn::InterleaveLower(d4, b, d);
      const auto ac2 = hn::InterleaveUpper(d4, a, c), bd2 = hn::InterleaveUpper(d4, b, d);
      float* out = to.at + column * to.stride + row;
      const auto r0 = hn::InterleaveLower(d4, ac, bd), r1 = hn::InterleaveUpper(d4, ac, bd);
      const auto r2 = hn::InterleaveLower(d4, ac2, bd2), r3 = hn::InterleaveUpper(d4, ac2, bd2);
      hn::Store(r0, d4, out);
      hn::Store(r1, d4, out + to.stride);
      hn::Store(r2, d4, out + 2 * to.stride);
      hn::Store(r3, d4, out + 3 * to.stride);
    }
  }
}

void TurnRun(const Turn& turn, int64_t first, const float* x, float* y, float* scratch) {
  const hn::Full128<float> d4;
  const int64_t a = turn.left.order, b = turn.right.order;
  const Grid z{scratch, RoundUp(b, kLanes)}, turned{scratch + Filled(a, b), RoundUp(a, kLanes)};
  float* const sums = turned.at + Filled(b, a);
  const float* signs = turn.signs + first;
  for (int64_t row = 0; row < a; ++row, x += b, signs += b) {
    float* const to = z.at + row * z.stride;
    int64_t i = 0;
    for (; i + 4 <= b; i += 4) hn::Store(hn::Mul(hn::LoadU(d4, x + i), hn::LoadU(d4, signs + i)), d4, to + i);
    for (; i < b; ++i) to[i] = x[i] * signs[i];
  }
  Times(turn.left, z, sums);
  if (b > 1 || turn.right.rows != nullptr) {
    Transpose(z, a, b, turned);
    Times(turn.right, turned, sums);
    Transpose(turned, b, a, z);
  }
  for (int64_t row = 0; row < a; ++row) std::memcpy(y + row * b, z.at + row * z.stride, static_cast<size_t>(b) * sizeof(float));
}

}  // namespace
}  // namespace adadim

#endif  // ADADIM_TURN_H_

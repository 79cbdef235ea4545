// A run of RotateAdaDim. Products are by +1 and -1 alone, and sums have one order: all instruction sets give the same bits. Only
// tile_kernels.cc includes this.
#ifndef ADADIM_TURN_H_
#define ADADIM_TURN_H_

#include "simd.h"

namespace adadim {
namespace {

// out[kPieces][width] = pieces of a row of z, one after another, times the right core; `width` is its order in whole registers.
template <int kPieces>
void RightCore(const RightFactor& right, const float* z, int64_t width, float* out) {
  for (int64_t lane = 0; lane < width; lane += kLanes) {
    Floats sum[kPieces];
    for (int i = 0; i < kPieces; ++i) sum[i] = hn::Zero(df);
    for (int64_t row = 0; row < right.core; ++row) {
      const Floats column = hn::LoadU(df, right.columns + row * RoundUp(right.core, kWidest) + lane);
#pragma GCC unroll 8
      for (int i = 0; i < kPieces; ++i) sum[i] = hn::MulAdd(hn::Set(df, z[i * right.core + row]), column, sum[i]);
    }
    for (int i = 0; i < kPieces; ++i) hn::Store(sum[i], df, out + i * width + lane);
  }
}

// The 8 sums z0 +-z1 +-z2 +-z3: bit i of a sum's number is set where z[i + 1] is taken off.
HWY_INLINE void SumsOf4(const Floats z[4], float* sums) {
  const Floats firsts[2] = {hn::Add(z[0], z[1]), hn::Sub(z[0], z[1])};
  const Floats lasts[2] = {hn::Add(z[2], z[3]), hn::Sub(z[2], z[3])};
#pragma GCC unroll 2
  for (int64_t i = 0; i < 2; ++i) {
    hn::Store(hn::Add(firsts[i], lasts[0]), df, sums + i * kLanes);
    hn::Store(hn::Sub(firsts[i], lasts[1]), df, sums + (2 + i) * kLanes);
    hn::Store(hn::Add(firsts[i], lasts[1]), df, sums + (4 + i) * kLanes);
    hn::Store(hn::Sub(firsts[i], lasts[0]), df, sums + (6 + i) * kLanes);
  }
}

// The left core times kLanes columns, in place: sums of four rows are made once, and each product is a sum of such sums.
void LeftCore(const LeftFactor& left, float* column, int64_t stride, float* sums) {
  const int64_t fours = CeilDiv(left.core, 4);
  for (int64_t four = 0; four < fours; ++four) {
    Floats z[4];
#pragma GCC unroll 4
    for (int64_t i = 0; i < 4; ++i) {
      const int64_t row = 4 * four + i;
      z[i] = row < left.core ? hn::Load(df, column + row * stride) : hn::Zero(df);
    }
    SumsOf4(z, sums + four * 8 * kLanes);
  }
  const SignedSum* term = left.terms;
  for (int64_t row = 0; row < left.core; ++row) {
    Floats sum = hn::Zero(df);
    for (int64_t four = 0; four < fours; ++four, ++term) {
      sum = hn::MulAdd(hn::Set(df, term->sign), hn::Load(df, sums + term->number * kLanes), sum);
    }
    hn::Store(sum, df, column + row * stride);
  }
}

// Sylvester's part of a factor: of `size` numbers the sums and differences of those that lie `apart`, 2 * apart, ... below `end`
// from each other; two steps at a time.
void Butterflies(float* z, int64_t size, int64_t apart, int64_t end) {
  for (; 4 * apart <= end; apart *= 4) {
    for (float* part = z; part < z + size; part += 4 * apart) {
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
  if (2 * apart > end) return;
  for (float* part = z; part < z + size; part += 2 * apart) {
    for (int64_t i = 0; i < apart; i += kLanes) {
      const Floats a = hn::Load(df, part + i), b = hn::Load(df, part + apart + i);
      hn::Store(hn::Add(a, b), df, part + i);
      hn::Store(hn::Sub(a, b), df, part + apart + i);
    }
  }
}

// y = pieces of `core` numbers that lie `width` apart, one after another. Whole registers are written while there is room.
void Gather(const float* z, int64_t pieces, int64_t core, int64_t width, float* y) {
  for (int64_t piece = 0; piece < pieces; ++piece, z += width) {
    const int64_t at = piece * core;
    if (at + width <= pieces * core) {
      for (int64_t i = 0; i < width; i += kLanes) hn::StoreU(hn::Load(df, z + i), df, y + at + i);
    } else {
      for (int64_t i = 0; i < core; ++i) y[at + i] = z[i];
    }
  }
}

// Lane i of a register gets that of i ^ kStep.
template <int kStep>
HWY_INLINE Floats Exchanged(Floats v) {
  if (kStep == 1) return hn::Shuffle2301(v);
  if (kStep == 2) return hn::Shuffle1032(v);
#if HWY_MAX_BYTES >= 32
  if (kStep == 4) return hn::SwapAdjacentBlocks(v);
#endif
#if HWY_MAX_BYTES >= 64
  if (kStep == 8) return hn::SwapAdjacentBlocks(hn::ReverseBlocks(df, v));
#endif
  return v;
}

// Sums and differences of lanes kStep apart, then 2 * kStep, ...
template <int kStep>
HWY_INLINE Floats InRegister(Floats v) {
  if constexpr (kStep >= kLanes) {
    return v;
  } else {
    const auto upper = hn::TestBit(hn::Iota(du, 0), hn::Set(du, kStep));
    const Floats signs = hn::IfThenElse(hn::RebindMask(df, upper), hn::Set(df, -1.0f), hn::Set(df, 1.0f));
    return InRegister<2 * kStep>(hn::MulAdd(v, signs, Exchanged<kStep>(v)));
  }
}

// The right factor's core on all pieces of signs * x. `z` has room for the run.
void FirstStep(const Turn& turn, const float* x, const float* signs, float* z, float* out) {
  const int64_t core = turn.right.core, width = RoundUp(core, kLanes), size = turn.left.order * turn.right.order;
  int64_t i = 0, piece = 0;
  if (turn.right.columns == nullptr) {
    for (; i < size; i += kLanes) {
      hn::Store(InRegister<1>(hn::Mul(hn::LoadU(df, x + i), hn::LoadU(df, signs + i))), df, out + i);
    }
    return Butterflies(out, size, kLanes, core);
  }
  for (; i + kLanes <= size; i += kLanes) hn::Store(hn::Mul(hn::LoadU(df, x + i), hn::LoadU(df, signs + i)), df, z + i);
  for (; i < size; ++i) z[i] = x[i] * signs[i];
  for (; piece + 8 <= size / core; piece += 8) RightCore<8>(turn.right, z + piece * core, width, out + piece * width);
  for (; piece < size / core; ++piece) RightCore<1>(turn.right, z + piece * core, width, out + piece * width);
}

void TurnRun(const Turn& turn, int64_t first, const float* x, float* y, float* scratch) {
  const int64_t a = turn.left.order, core = turn.right.core, size = a * turn.right.order, pieces = size / core;
  const int64_t width = RoundUp(core, kLanes), row = turn.right.order / core * width;
  float* const z = scratch + pieces * RoundUp(core, kWidest);  // the signed run first, then the sums
  FirstStep(turn, x, turn.signs + first, z, scratch);
  Butterflies(scratch, a * row, width, row);
  if (turn.left.terms != nullptr) {
    for (int64_t block = 0; block < a; block += turn.left.core) {
      for (int64_t lane = 0; lane < row; lane += kLanes) LeftCore(turn.left, scratch + block * row + lane, row, z);
    }
  }
  Butterflies(scratch, a * row, turn.left.core * row, a * row);
  Gather(scratch, pieces, core, width, y);
}

}  // namespace
}  // namespace adadim

#endif  // ADADIM_TURN_H_

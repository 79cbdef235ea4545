// Activations of layout 1, rounded to 8 bits or scaled. Only tile_kernels.cc includes this.
#ifndef ADADIM_ROUND_H_
#define ADADIM_ROUND_H_

#include "dot.h"
#include "simd.h"
#include "unpack.h"

namespace adadim {
namespace {

constexpr float kSmallest = 1e-30f;  // a segment whose values are all below counts as zero

// Scales of a group of outputs, zero beyond the last block.
HWY_INLINE Floats GroupScales(const TileWeights& w, const Spread& spread, int64_t k) {
  const int64_t length = w.geometry.blocks * kBlock;
  return k < length ? LoadScales(w.weights, spread.group * length + k) : hn::Zero(df);
}

// Asks for what the next group has for a chunk of input channels: it lies too far from this group's for the processor to guess.
HWY_INLINE void AskForNext(const TileWeights& w, const Spread& spread, int64_t k) {
  const int64_t at = (spread.group + 1) * w.geometry.blocks * kBlock + k, size = w.weights.float16_scales ? 2 : 4;
  const uint8_t* scales = static_cast<const uint8_t*>(w.weights.scales) + at * size;
  for (int64_t i = 0; i < kChunk * size; i += kLine) __builtin_prefetch(scales + i);
  if (w.shared_zeros == nullptr) __builtin_prefetch(w.weights.zero_points + at * ZeroBits(w.weights) / 8);
}

void SpreadGroup(const TileWeights& w, const Spread& spread) {
  const int64_t length = w.geometry.blocks * kBlock, bits = ZeroBits(w.weights);
  if (spread.scales != nullptr) {
#pragma GCC unroll 4
    for (int64_t k = 0; k < w.length; k += kLanes) hn::StoreU(GroupScales(w, spread, k), df, spread.scales + k);
  }
  std::memset(spread.zeros + length, 0, static_cast<size_t>(w.length - length));
  const uint8_t* packed = w.shared_zeros == nullptr ? w.weights.zero_points + spread.group * length * bits / 8 : nullptr;
  if (w.shared_zeros != nullptr) {
    std::memset(spread.zeros, static_cast<int>(w.shared_zeros[spread.group]), static_cast<size_t>(length));
  } else if (bits == 8) {
    std::memcpy(spread.zeros, packed, static_cast<size_t>(length));
  } else {
    (bits == 4 ? UnpackZeroRow<4> : UnpackZeroRow<2>)(packed, length, spread.zeros);
  }
  if (spread.float_zeros == nullptr) return;
  for (int64_t k = 0; k < w.length; ++k) spread.float_zeros[k] = spread.zeros[k];
}

// |value| as an integer: in the order of the floats, and a NaN is greater than every number.
HWY_INLINE Ints Magnitude(Floats value) { return hn::And(hn::BitCast(di, value), hn::Set(di, 0x7FFFFFFF)); }

// The lowest byte of each lane is the value rounded to the nearest integer, for values between -127 and 127: the sum has no
// room for a fraction. Not so for NaN, whose scale says it.
HWY_INLINE hn::Vec<UnsignedTag> RoundToByte(Floats value, Floats factor) {
  return hn::BitCast(du, hn::MulAdd(value, factor, hn::Set(df, 12582912.0f)));
}

// The largest of a register's 128-bit parts.
HWY_INLINE hn::Vec128<int32_t> Fold(hn::Vec128<int32_t> v) { return v; }
#if HWY_MAX_BYTES >= 32
HWY_INLINE hn::Vec128<int32_t> Fold(hn::Vec256<int32_t> v) {
  const hn::Full128<int32_t> half;
  return hn::Max(hn::LowerHalf(half, v), hn::UpperHalf(half, v));
}
#endif
#if HWY_MAX_BYTES >= 64
HWY_INLINE hn::Vec128<int32_t> Fold(hn::Vec512<int32_t> v) {
  const hn::Full256<int32_t> half;
  return Fold(hn::Max(hn::LowerHalf(half, v), hn::UpperHalf(half, v)));
}
#endif

// The largest lane of each of four registers.
HWY_INLINE hn::Vec128<int32_t> Largest4(const Ints v[4]) {
  const hn::Repartition<uint64_t, IntTag> dl;
  const auto ab = hn::BitCast(dl, hn::Max(hn::InterleaveLower(di, v[0], v[1]), hn::InterleaveUpper(di, v[0], v[1])));
  const auto cd = hn::BitCast(dl, hn::Max(hn::InterleaveLower(di, v[2], v[3]), hn::InterleaveUpper(di, v[2], v[3])));
  return Fold(hn::Max(hn::BitCast(di, hn::InterleaveLower(dl, ab, cd)), hn::BitCast(di, hn::InterleaveUpper(dl, ab, cd))));
}

// Rounds four segments of row m from `segment` on, times the scales of a group of outputs unless `spread` is null.
template <int64_t kSegment>
HWY_INLINE void Round4(const TileWeights& w, const Spread* spread, const Panel& panel, int64_t m, int64_t segment) {
  constexpr int64_t kVectors = kSegment / kLanes;
  const hn::Full128<float> d4;
  const hn::Rebind<uint8_t, FloatTag> dq;
  const int64_t k = segment * kSegment;
  const float* values = panel.values + m * w.length + k;
  uint8_t* rounded = reinterpret_cast<uint8_t*>(panel.rounded) + m * w.length + k;
  Floats scaled[4 * kVectors];
  Ints most[4];
#pragma GCC unroll 4
  for (int64_t s = 0; s < 4; ++s) {
    most[s] = hn::Zero(di);
#pragma GCC unroll 8
    for (int64_t i = s * kVectors; i < (s + 1) * kVectors; ++i) {
      scaled[i] = hn::LoadU(df, values + i * kLanes);
      if (spread != nullptr) scaled[i] = hn::Mul(scaled[i], GroupScales(w, *spread, k + i * kLanes));
      most[s] = hn::Max(most[s], Magnitude(scaled[i]));
    }
  }
  const auto largest = hn::BitCast(d4, Largest4(most));
  HWY_ALIGN float factors[4];
  hn::Store(hn::IfThenElseZero(hn::Gt(largest, hn::Set(d4, kSmallest)), hn::Div(hn::Set(d4, 127), largest)), d4, factors);
  hn::StoreU(hn::Mul(largest, hn::Set(d4, 1.0f / 127)), d4, panel.scales + m * w.length / kSegment + segment);
#pragma GCC unroll 32
  for (int64_t i = 0; i < 4 * kVectors; ++i) {
    const auto bytes = hn::U8FromU32(RoundToByte(scaled[i], hn::Set(df, factors[i / kVectors])));
    hn::StoreU(bytes, dq, rounded + i * kLanes);
  }
}

// The sum of zeros * rounded * scale of a segment over a row.
HWY_INLINE float ZeroSum(const uint8_t* zeros, const int8_t* rounded, const float* scales, int64_t length) {
  constexpr int64_t kBytes = 4 * kLanes;
  Floats total = hn::Zero(df);
  for (int64_t k = 0; k < length; k += kBytes) {
    const Ints sum = Dot4<false>(hn::Zero(di), hn::LoadU(db, zeros + k), hn::LoadU(SignedByteTag(), rounded + k));
    Floats scale = hn::Set(df, scales[k / kBlock]);
    if (kBytes > kBlock) scale = hn::IfThenElse(hn::FirstN(df, kBlock / 4), scale, hn::Set(df, scales[k / kBlock + 1]));
    total = hn::MulAdd(hn::ConvertTo(df, sum), scale, total);
  }
  return hn::GetLane(hn::SumOfLanes(df, total));
}

template <int64_t kSegment>
void RoundRows(const TileWeights& w, const Spread* spread, const Panel& panel) {
  const int64_t segments = w.length / kSegment;
  for (int64_t m = 0; m < panel.width; ++m) {
    const int8_t* rounded = panel.rounded + m * w.length;
    const float* scales = panel.scales + m * segments;
    for (int64_t s = 0; s < segments; s += 4) {
      if (spread != nullptr && m == 0) AskForNext(w, *spread, s * kSegment);
      Round4<kSegment>(w, spread, panel, m, s);
    }
    if (spread != nullptr) {
      panel.corrections[m] = ZeroSum(spread->zeros, rounded, scales, w.length);
      continue;
    }
    for (int64_t s = 0; s < segments; ++s) {
      int32_t sum = 0;
      for (int64_t i = 0; i < kSegment; ++i) sum += rounded[s * kSegment + i];
      panel.corrections[m * segments + s] = scales[s] * static_cast<float>(sum);
    }
  }
}

// As RoundRows, with rows in lanes.
template <int64_t kSegment>
void RoundInterleaved(const TileWeights& w, const Spread* spread, const Panel& panel) {
  const int64_t segments = w.length / kSegment;
  for (int64_t lane = 0; lane < kPanel; lane += kLanes) {
    Floats total = hn::Zero(df);
    for (int64_t s = 0; s < segments; ++s) {
      const float* values = panel.values + s * kSegment * kPanel + lane;
      Floats scaled[kSegment];
      Ints most = hn::Zero(di);
#pragma GCC unroll 32
      for (int64_t k = 0; k < kSegment; ++k) {
        scaled[k] = hn::LoadU(df, values + k * kPanel);
        if (spread != nullptr) scaled[k] = hn::Mul(scaled[k], hn::Set(df, spread->scales[s * kSegment + k]));
        most = hn::Max(most, Magnitude(scaled[k]));
      }
      const Floats largest = hn::BitCast(df, most);
      const auto used = hn::Gt(largest, hn::Set(df, kSmallest));
      const Floats inverse = hn::IfThenElseZero(used, hn::Div(hn::Set(df, 127), largest));
      Ints sum = hn::Zero(di);
#pragma GCC unroll 8
      for (int64_t k = 0; k < kSegment; k += 4) {
        auto four = RoundToByte(scaled[k + 3], inverse);  // to the highest byte
#pragma GCC unroll 3
        for (int64_t i = 2; i >= 0; --i) {
          four = hn::Or(hn::ShiftLeft<8>(four), hn::And(RoundToByte(scaled[k + i], inverse), hn::Set(du, 255)));
        }
        const auto rounded = hn::BitCast(SignedByteTag(), four);
        hn::StoreU(rounded, SignedByteTag(), panel.rounded + (s * kSegment + k) * kPanel + lane * 4);
        const Bytes zeros = spread == nullptr ? hn::Set(db, 1)
                                              : hn::BitCast(db, Broadcast4(spread->zeros + s * kSegment + k));
        sum = Dot4<false>(sum, zeros, rounded);
      }
      const Floats scale = hn::Mul(largest, hn::Set(df, 1.0f / 127));
      const Floats correction = hn::Mul(scale, hn::ConvertTo(df, sum));
      hn::StoreU(scale, df, panel.scales + s * kPanel + lane);
      if (spread == nullptr) hn::StoreU(correction, df, panel.corrections + s * kPanel + lane);
      total = hn::Add(total, correction);
    }
    if (spread != nullptr) hn::StoreU(total, df, panel.corrections + lane);
  }
}

void ScaleRows(const TileWeights& w, const Spread& spread, const Panel& panel) {
  if (panel.interleaved) {
    for (int64_t k = 0; k < w.length; ++k) {
      const Floats scale = hn::Set(df, spread.scales[k]);
      for (int64_t i = k * kPanel; i < (k + 1) * kPanel; i += kLanes) {
        hn::StoreU(hn::Mul(hn::LoadU(df, panel.values + i), scale), df, panel.scaled + i);
      }
    }
    return;
  }
  for (int64_t m = 0; m < panel.width; ++m) {
    for (int64_t k = 0; k < w.length; k += kLanes) {
      const int64_t at = m * w.length + k;
      hn::StoreU(hn::Mul(hn::LoadU(df, panel.values + at), hn::LoadU(df, spread.scales + k)), df, panel.scaled + at);
    }
  }
}

void Prepare(const TileWeights& w, const Spread* spread, const Panel& panel) {
  if (w.precision == Precision::kFloat) {
    if (spread != nullptr) ScaleRows(w, *spread, panel);
  } else if (w.weights.per_oc && w.geometry.group_size % kBlock != 0) {
    (panel.interleaved ? RoundInterleaved<kBlock / 2> : RoundRows<kBlock / 2>)(w, spread, panel);
  } else {
    (panel.interleaved ? RoundInterleaved<kBlock> : RoundRows<kBlock>)(w, spread, panel);
  }
}

}  // namespace
}  // namespace adadim

#endif  // ADADIM_ROUND_H_

// The kernels of layout 1. Compiled once for each instruction set, with its compiler flags and ADADIM_TARGET as its name;
// only the table at the end leaves this file, so that no function of one set can stand in for another's.
#include <cstdint>
#include <cstring>

#define HWY_COMPILE_ONLY_STATIC
#include "hwy/highway.h"
#include "tiles.h"

namespace adadim {
namespace {

namespace hn = hwy::HWY_NAMESPACE;

#include "dot.h"

using FloatTag = hn::ScalableTag<float>;
using IntTag = hn::RebindToSigned<FloatTag>;
using UnsignedTag = hn::RebindToUnsigned<FloatTag>;
using ByteTag = hn::Repartition<uint8_t, FloatTag>;
using SignedByteTag = hn::Repartition<int8_t, FloatTag>;
using Floats = hn::Vec<FloatTag>;
using Ints = hn::Vec<IntTag>;
using Bytes = hn::Vec<ByteTag>;

constexpr FloatTag df;
constexpr IntTag di;
constexpr UnsignedTag du;
constexpr ByteTag db;
constexpr int64_t kLanes = HWY_MAX_BYTES / sizeof(float);  // outputs, or rows, of a register
constexpr int64_t kSteps = kBlock / 4;  // of four input channels in a block
constexpr int kRegisterRows = HWY_MAX_BYTES == 64 || HWY_ARCH_ARM_A64 ? 8 : 4;  // of an interleaved panel at a time
#ifndef AHEAD
#define AHEAD 2048
#endif
constexpr int64_t kAhead = AHEAD;  // bytes of codes that are asked for in advance
constexpr float kSmallest = 1e-30f;  // below it a segment's activations count as zero

HWY_INLINE Floats LoadScales(const TileWeights& w, int64_t index) {
  if (!w.weights.float16_scales) return hn::LoadU(df, static_cast<const float*>(w.weights.scales) + index);
  const hn::Rebind<hwy::float16_t, FloatTag> dh;
  return hn::PromoteTo(df, hn::LoadU(dh, static_cast<const hwy::float16_t*>(w.weights.scales) + index));
}

// The same four activations for every output: bytes a[0] to a[3] in each lane.
HWY_INLINE hn::Vec<SignedByteTag> Broadcast4(const void* a) {
  int32_t four;
  hwy::CopyBytes<4>(a, &four);
  return hn::BitCast(SignedByteTag(), hn::Set(di, four));
}

template <int kShift>
HWY_INLINE Bytes Field(Bytes line, uint8_t mask) {
  const hn::Repartition<uint16_t, ByteTag> dw;  // no processor shifts bytes; what comes over from a neighbour is masked away
  return hn::And(hn::BitCast(db, hn::ShiftRight<kShift>(hn::BitCast(dw, line))), hn::Set(db, mask));
}

// The codes of a block, four input channels for each lane's output in each register.
template <int kBits>
struct Codes;

template <>
struct Codes<8> {
  static HWY_INLINE void Unpack(const uint8_t* block, Bytes q[kSteps]) {
    for (int64_t line = 0; line < 8; ++line) q[line] = hn::LoadU(db, block + line * kLine);
  }
};

template <>
struct Codes<4> {
  static HWY_INLINE void Unpack(const uint8_t* block, Bytes q[kSteps]) {
    for (int64_t line = 0; line < 4; ++line) {
      const Bytes pair = hn::LoadU(db, block + line * kLine);
      q[2 * line] = hn::And(pair, hn::Set(db, 15));
      q[2 * line + 1] = Field<4>(pair, 15);
    }
  }
};

template <>
struct Codes<2> {
  static HWY_INLINE void Unpack(const uint8_t* block, Bytes q[kSteps]) {
    for (int64_t line = 0; line < 2; ++line) {
      const Bytes four = hn::LoadU(db, block + line * kLine);
      q[4 * line] = hn::And(four, hn::Set(db, 3));
      q[4 * line + 1] = Field<2>(four, 3);
      q[4 * line + 2] = Field<4>(four, 3);
      q[4 * line + 3] = Field<6>(four, 3);
    }
  }
};

template <>
struct Codes<3> {
  static HWY_INLINE void Unpack(const uint8_t* block, Bytes q[kSteps]) {
    Codes<2>::Unpack(block, q);
    const Bytes high = hn::LoadU(db, block + 2 * kLine);
    const hn::Repartition<uint16_t, ByteTag> dw;
    const Bytes two = hn::BitCast(db, hn::ShiftLeft<2>(hn::BitCast(dw, high)));
    const Bytes one = hn::BitCast(db, hn::ShiftLeft<1>(hn::BitCast(dw, high)));
    const Bytes four = hn::Set(db, 4);
    q[0] = hn::Or(q[0], hn::And(two, four));
    q[1] = hn::Or(q[1], hn::And(one, four));
    q[2] = hn::Or(q[2], hn::And(high, four));
    q[3] = hn::Or(q[3], Field<1>(high, 4));
    q[4] = hn::Or(q[4], Field<2>(high, 4));
    q[5] = hn::Or(q[5], Field<3>(high, 4));
    q[6] = hn::Or(q[6], Field<4>(high, 4));
    q[7] = hn::Or(q[7], Field<5>(high, 4));
  }
};

// Zero points of a tile's outputs (PER_OC) in group b: bits (b % per) * bits of dword n in line b / per, per = 32 / bits.
template <int kBits>
HWY_INLINE Floats ZeroPoints(const TileWeights& w, const uint8_t* tile_lines, int64_t group, int64_t lane) {
  if (w.shared_zeros != nullptr) return hn::Set(df, w.shared_zeros[group]);
  constexpr int bits = kBits == 3 ? 4 : kBits, per = 32 / bits;
  const auto words = hn::BitCast(du, hn::LoadU(db, tile_lines + group / per * kLine + lane * 4));
  const auto zeros = hn::And(hn::ShiftRightSame(words, static_cast<int>(group % per) * bits), hn::Set(du, (1u << bits) - 1));
  return hn::ConvertTo(df, hn::BitCast(di, zeros));
}

// Where a tile's numbers are, and which of the panel's rows are multiplied: `rows` from `first` on.
struct TileRun {
  const TileWeights& w;
  const Spread* spread;
  const Panel& panel;
  const uint8_t* codes;  // of the tile
  const uint8_t* zeros;  // PER_OC
  int64_t scales;  // PER_OC: index of the tile's first
  int64_t first;
  float* out;  // row `first`
};

// The scale and zero point of each lane's output, group after group (PER_OC).
template <int kBits>
struct Groups {
  HWY_INLINE Groups(const TileRun& run, int64_t lane, int64_t segment)
      : run_(run), lane_(lane), segments_(run.w.geometry.group_size / segment) {}
  HWY_INLINE void Next() {
    if (left_-- > 0) return;
    left_ = segments_ - 1;
    if (group_ == run_.w.geometry.groups) return;  // the last block's filling, of activations that are zero
    scale = LoadScales(run_.w, run_.scales + group_ * kTile + lane_);
    zero = ZeroPoints<kBits>(run_.w, run_.zeros, group_++, lane_);
  }
  Floats scale = hn::Zero(df), zero = hn::Zero(df);

 private:
  const TileRun& run_;
  const int64_t lane_, segments_;
  int64_t group_ = 0, left_ = 0;
};

// Distances in a panel's arrays, in elements of four rounded values, of floats, and of scales.
template <bool kInterleaved>
struct Steps {
  explicit Steps(const TileWeights& w, int64_t segment)
      : row(kInterleaved ? 1 : w.geometry.blocks * kBlock),
        step(kInterleaved ? kPanel : 1),
        scale_row(kInterleaved ? 1 : w.geometry.blocks * kBlock / segment),
        scale_step(kInterleaved ? kPanel : 1) {}
  const int64_t row, step, scale_row, scale_step;
};

// out[kRows][lanes of 16] = rounded activations times a tile.
template <int kBits, int kRows, bool kInterleaved, bool kPerOc, int64_t kSegment>
void MultiplyInt8(const TileRun& run, int64_t lane) {
  constexpr int64_t kSegmentSteps = kSegment / 4;
  const Steps<kInterleaved> steps(run.w, kSegment);
  const int64_t row_bytes = kInterleaved ? 4 : steps.row, step_bytes = 4 * steps.step;
  const int8_t* a = run.panel.rounded + run.first * row_bytes;
  const float* scales = run.panel.scales + run.first * steps.scale_row;
  const float* corrections = run.panel.corrections + run.first * (kPerOc ? steps.scale_row : 1);
  const uint8_t* codes = run.codes + lane * 4;
  Groups<kBits> groups(run, lane, kSegment);
  Floats total[kRows];
  for (int m = 0; m < kRows; ++m) total[m] = hn::Zero(df);
  for (int64_t block = 0; block < run.w.geometry.blocks; ++block, codes += kBits * kLine) {
    for (int64_t line = 0; line < kBits; ++line) __builtin_prefetch(codes + kAhead + line * kLine);
    Bytes q[kSteps];
    Codes<kBits>::Unpack(codes, q);
#pragma GCC unroll 2
    for (int64_t segment = 0; segment < kBlock / kSegment; ++segment) {
      Ints sum[kRows];
      for (int m = 0; m < kRows; ++m) sum[m] = hn::Zero(di);
#pragma GCC unroll 8
      for (int64_t step = 0; step < kSegmentSteps; ++step, a += step_bytes) {
#pragma GCC unroll 8
        for (int m = 0; m < kRows; ++m) {
          sum[m] = Dot4<kBits <= 4>(sum[m], q[segment * kSegmentSteps + step], Broadcast4(a + m * row_bytes));
        }
      }
      if (kPerOc) groups.Next();
#pragma GCC unroll 8
      for (int m = 0; m < kRows; ++m) {
        const Floats scale = hn::Set(df, scales[m * steps.scale_row]);
        if (kPerOc) {  // scale of the weights * (scale of the activations * (q . a) - zero * (scale * sum of a))
          const Floats centred = hn::NegMulAdd(groups.zero, hn::Set(df, corrections[m * steps.scale_row]),
                                               hn::Mul(hn::ConvertTo(df, sum[m]), scale));
          total[m] = hn::MulAdd(centred, groups.scale, total[m]);
        } else {
          total[m] = hn::MulAdd(hn::ConvertTo(df, sum[m]), scale, total[m]);
        }
      }
      scales += steps.scale_step;
      if (kPerOc) corrections += steps.scale_step;
    }
  }
  for (int m = 0; m < kRows; ++m) {
    if (!kPerOc) total[m] = hn::Sub(total[m], hn::Set(df, corrections[m]));
    hn::StoreU(total[m], df, run.out + m * kTile + lane);
  }
}

// Input channel 4 * step + kByte of the codes, less the zero point.
template <int kByte>
HWY_INLINE Floats Centred(Bytes q, Floats zero) {
  const auto code = hn::And(hn::ShiftRight<8 * kByte>(hn::BitCast(du, q)), hn::Set(du, 255));
  return hn::Sub(hn::ConvertTo(df, hn::BitCast(di, code)), zero);
}

// out[kRows][lanes of 16] = float activations times a tile.
template <int kBits, int kRows, bool kInterleaved, bool kPerOc>
void MultiplyFloat(const TileRun& run, int64_t lane) {
  constexpr int64_t kSegment = 16;
  const Steps<kInterleaved> steps(run.w, kSegment);
  const float* a = (kPerOc ? run.panel.values : run.panel.scaled) + run.first * steps.row;
  const float* zeros = kPerOc ? nullptr : run.spread->float_zeros;
  const uint8_t* codes = run.codes + lane * 4;
  Groups<kBits> groups(run, lane, kSegment);
  Floats total[kRows];
  for (int m = 0; m < kRows; ++m) total[m] = hn::Zero(df);
  for (int64_t block = 0; block < run.w.geometry.blocks; ++block, codes += kBits * kLine) {
    for (int64_t line = 0; line < kBits; ++line) __builtin_prefetch(codes + kAhead + line * kLine);
    Bytes q[kSteps];
    Codes<kBits>::Unpack(codes, q);
#pragma GCC unroll 2
    for (int64_t segment = 0; segment < kBlock / kSegment; ++segment) {
      if (kPerOc) groups.Next();
      Floats sum[kRows];
      for (int m = 0; m < kRows; ++m) sum[m] = kPerOc ? hn::Zero(df) : total[m];
#pragma GCC unroll 4
      for (int64_t step = 0; step < kSegment / 4; ++step) {
        const Bytes four = q[segment * kSegment / 4 + step];
        const auto add = [&](Floats weight) HWY_ATTR {
#pragma GCC unroll 8
          for (int m = 0; m < kRows; ++m) sum[m] = hn::MulAdd(weight, hn::Set(df, a[m * steps.row]), sum[m]);
          a += steps.step;
        };
        const auto zero = [&](int64_t i) HWY_ATTR { return kPerOc ? groups.zero : hn::Set(df, zeros[i]); };
        add(Centred<0>(four, zero(0)));
        add(Centred<1>(four, zero(1)));
        add(Centred<2>(four, zero(2)));
        add(Centred<3>(four, zero(3)));
        if (!kPerOc) zeros += 4;
      }
      for (int m = 0; m < kRows; ++m) total[m] = kPerOc ? hn::MulAdd(sum[m], groups.scale, total[m]) : sum[m];
    }
  }
  for (int m = 0; m < kRows; ++m) hn::StoreU(total[m], df, run.out + m * kTile + lane);
}

template <int kBits, int kRows, bool kInterleaved>
void MultiplyRows(const TileRun& run) {
  const bool per_oc = run.w.weights.per_oc, even = run.w.geometry.group_size % kBlock == 0;
  for (int64_t lane = 0; lane < kTile; lane += kLanes) {
    if (run.w.precision == Precision::kFloat) {
      (per_oc ? MultiplyFloat<kBits, kRows, kInterleaved, true> : MultiplyFloat<kBits, kRows, kInterleaved, false>)(run, lane);
    } else if (!per_oc) {
      MultiplyInt8<kBits, kRows, kInterleaved, false, kBlock>(run, lane);
    } else {
      (even ? MultiplyInt8<kBits, kRows, kInterleaved, true, kBlock>
            : MultiplyInt8<kBits, kRows, kInterleaved, true, kBlock / 2>)(run, lane);
    }
  }
}

template <int kBits>
void MultiplyPanel(TileRun& run) {
  if (!run.panel.interleaved) {
    return run.panel.width == 1 ? MultiplyRows<kBits, 1, false>(run) : MultiplyRows<kBits, kContiguousRows, false>(run);
  }
  for (; run.first < run.panel.rows; run.first += kRegisterRows, run.out += kRegisterRows * kTile) {
    MultiplyRows<kBits, kRegisterRows, true>(run);
  }
}

void Multiply(const TileWeights& w, const Spread* spread, const Panel& panel, int64_t tile, float* out) {
  const Geometry& g = w.geometry;
  const int64_t zero_bytes = CeilDiv(g.groups * ZeroBits(w.weights), 32) * kLine;
  TileRun run{w, spread, panel, w.weights.codes + tile * g.blocks * w.weights.bits * kLine,
              w.weights.zero_points + tile * zero_bytes, tile * g.groups * kTile, 0, out};
  switch (w.weights.bits) {
    case 2: return MultiplyPanel<2>(run);
    case 3: return MultiplyPanel<3>(run);
    case 4: return MultiplyPanel<4>(run);
    default: return MultiplyPanel<8>(run);
  }
}

// Zero points of 32 input channels of a group of outputs, from a stream of bits.
template <int kBits>
HWY_INLINE void UnpackZeros(const uint8_t* packed, uint8_t* zeros) {
  const hn::CappedTag<uint8_t, kBlock * kBits / 8> d;
  const hn::Repartition<uint16_t, decltype(d)> dw;
  const auto field = [&](auto bytes, int index) HWY_ATTR {
    return hn::And(hn::BitCast(d, hn::ShiftRightSame(hn::BitCast(dw, bytes), kBits * index)), hn::Set(d, (1 << kBits) - 1));
  };
  const auto bytes = hn::LoadU(d, packed);
  if (kBits == 4) {  // byte i holds 2i, 2i + 1
    hn::StoreInterleaved2(field(bytes, 0), field(bytes, 1), d, zeros);
  } else {  // 2 bits: byte i holds 4i to 4i + 3
    hn::StoreInterleaved4(field(bytes, 0), field(bytes, 1), field(bytes, 2), field(bytes, 3), d, zeros);
  }
}

template <int kBits>
void UnpackZeroRow(const uint8_t* packed, int64_t length, uint8_t* zeros) {
  for (int64_t k = 0; k < length; k += kBlock) UnpackZeros<kBits>(packed + k * kBits / 8, zeros + k);
}

void SpreadGroup(const TileWeights& w, int64_t group, const Spread& spread) {
  const int64_t length = w.geometry.blocks * kBlock, bits = ZeroBits(w.weights);
  for (int64_t k = 0; k < length; k += kLanes) hn::StoreU(LoadScales(w, group * length + k), df, spread.scales + k);
  const uint8_t* packed = w.weights.zero_points + group * length * bits / 8;
  if (w.shared_zeros != nullptr) {
    std::memset(spread.zeros, static_cast<int>(w.shared_zeros[group]), static_cast<size_t>(length));
  } else if (bits == 8) {
    std::memcpy(spread.zeros, packed, static_cast<size_t>(length));
  } else {
    (bits == 4 ? UnpackZeroRow<4> : UnpackZeroRow<2>)(packed, length, spread.zeros);
  }
  if (w.precision == Precision::kInt8) return;
  for (int64_t k = 0; k < length; ++k) spread.float_zeros[k] = spread.zeros[k];
}

// |value| as an integer: in the order of the floats, and a NaN is greater than every number.
HWY_INLINE Ints Magnitude(Floats value) { return hn::And(hn::BitCast(di, value), hn::Set(di, 0x7FFFFFFF)); }

// The lowest byte of each lane is the value rounded to the nearest integer, for values between -127 and 127: the sum has no
// room for a fraction. Not so for NaN, whose scale says it.
HWY_INLINE hn::Vec<UnsignedTag> RoundToByte(Floats value, Floats factor) {
  return hn::BitCast(du, hn::MulAdd(value, factor, hn::Set(df, 12582912.0f)));
}

// One operation over the 128-bit parts of a register.
template <class Operation>
HWY_INLINE hn::Vec128<int32_t> Fold(hn::Vec128<int32_t> v, Operation) {
  return v;
}
#if HWY_MAX_BYTES >= 32
template <class Operation>
HWY_INLINE hn::Vec128<int32_t> Fold(hn::Vec256<int32_t> v, Operation operation) {
  return operation(hn::LowerHalf(hn::Full128<int32_t>(), v), hn::UpperHalf(hn::Full128<int32_t>(), v));
}
#endif
#if HWY_MAX_BYTES >= 64
template <class Operation>
HWY_INLINE hn::Vec128<int32_t> Fold(hn::Vec512<int32_t> v, Operation operation) {
  const hn::Full256<int32_t> half;
  return Fold(operation(hn::LowerHalf(half, v), hn::UpperHalf(half, v)), operation);
}
#endif

// [sums or maxima of four registers] by one operation.
template <class Operation>
HWY_INLINE hn::Vec128<int32_t> Reduce4(const Ints v[4], Operation operation) {
  const hn::Repartition<uint64_t, IntTag> dl;
  const Ints ab = operation(hn::InterleaveLower(di, v[0], v[1]), hn::InterleaveUpper(di, v[0], v[1]));
  const Ints cd = operation(hn::InterleaveLower(di, v[2], v[3]), hn::InterleaveUpper(di, v[2], v[3]));
  const auto ab2 = hn::BitCast(dl, ab), cd2 = hn::BitCast(dl, cd);
  return Fold(operation(hn::BitCast(di, hn::InterleaveLower(dl, ab2, cd2)), hn::BitCast(di, hn::InterleaveUpper(dl, ab2, cd2))),
              operation);
}

// Rounds four segments of a row, times `by` unless null.
template <int64_t kSegment>
HWY_INLINE void RoundSegments(const float* const values[4], const float* const by[4], int8_t* const rounded[4], float scales[4]) {
  constexpr int64_t kVectors = kSegment / kLanes;
  const hn::Full128<float> d4;
  Floats scaled[4][kVectors];
  Ints most[4];
#pragma GCC unroll 4
  for (int64_t s = 0; s < 4; ++s) {
    most[s] = hn::Zero(di);
#pragma GCC unroll 8
    for (int64_t i = 0; i < kVectors; ++i) {
      scaled[s][i] = hn::LoadU(df, values[s] + i * kLanes);
      if (by != nullptr) scaled[s][i] = hn::Mul(scaled[s][i], hn::LoadU(df, by[s] + i * kLanes));
      most[s] = hn::Max(most[s], Magnitude(scaled[s][i]));
    }
  }
  const auto largest = hn::BitCast(d4, Reduce4(most, [](auto a, auto b) HWY_ATTR { return hn::Max(a, b); }));
  const auto inverse = hn::IfThenElseZero(hn::Gt(largest, hn::Set(d4, kSmallest)), hn::Div(hn::Set(d4, 127), largest));
  HWY_ALIGN float factors[4];
  hn::Store(inverse, d4, factors);
  hn::StoreU(hn::Mul(largest, hn::Set(d4, 1.0f / 127)), d4, scales);
  const hn::Rebind<uint8_t, FloatTag> dq;
#pragma GCC unroll 4
  for (int64_t s = 0; s < 4; ++s) {
    const Floats factor = hn::Set(df, factors[s]);
#pragma GCC unroll 8
    for (int64_t i = 0; i < kVectors; ++i) {
      hn::StoreU(hn::U8FromU32(RoundToByte(scaled[s][i], factor)), dq,
                 reinterpret_cast<uint8_t*>(rounded[s]) + i * kLanes);
    }
  }
}

// Sum over k of zeros[k] * rounded[k] * its segment's scale, in some order of lanes.
HWY_INLINE float Correction(const TileWeights& w, const uint8_t* zeros, const int8_t* rounded, const float* scales) {
  constexpr int64_t kBytes = 4 * kLanes;
  const int64_t length = w.geometry.blocks * kBlock;
  Floats total = hn::Zero(df);
  for (int64_t k = 0; k < length; k += kBytes) {
    const Ints sum = Dot4<false>(hn::Zero(di), hn::LoadU(db, zeros + k), hn::LoadU(SignedByteTag(), rounded + k));
    const int64_t segment = k / kBlock;
    Floats scale = hn::Set(df, scales[segment]);
    if (kBytes > kBlock) {  // two segments, or the last one and what lies behind it
      const Floats second = hn::Set(df, segment + 1 < w.geometry.blocks ? scales[segment + 1] : 0);
      scale = hn::IfThenElse(hn::FirstN(df, kBlock / 4), scale, second);
    }
    total = hn::MulAdd(hn::ConvertTo(df, sum), scale, total);
  }
  return hn::GetLane(hn::SumOfLanes(df, total));
}

template <int64_t kSegment>
void RoundRows(const TileWeights& w, const Spread* spread, const Panel& panel) {
  const int64_t length = w.geometry.blocks * kBlock, segments = length / kSegment;
  for (int64_t m = 0; m < panel.width; ++m) {
    const float* values = panel.values + m * length;
    int8_t* rounded = panel.rounded + m * length;
    float* scales = panel.scales + m * segments;
    for (int64_t first = 0; first < segments; first += 4) {
      const float* from[4];
      const float* by[4];
      int8_t* to[4];
      float found[4];
      for (int64_t i = 0; i < 4; ++i) {
        const int64_t k = std::min(first + i, segments - 1) * kSegment;  // the last one again instead of those behind it
        from[i] = values + k;
        by[i] = spread == nullptr ? nullptr : spread->scales + k;
        to[i] = rounded + k;
      }
      RoundSegments<kSegment>(from, spread == nullptr ? nullptr : by, to, found);
      for (int64_t i = 0; i < std::min<int64_t>(4, segments - first); ++i) scales[first + i] = found[i];
    }
    if (spread != nullptr) {
      panel.corrections[m] = Correction(w, spread->zeros, rounded, scales);
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
  const int64_t segments = w.geometry.blocks * kBlock / kSegment;
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
  const int64_t length = w.geometry.blocks * kBlock;
  if (panel.interleaved) {
    for (int64_t k = 0; k < length; ++k) {
      const Floats scale = hn::Set(df, spread.scales[k]);
      for (int64_t i = k * kPanel; i < (k + 1) * kPanel; i += kLanes) {
        hn::StoreU(hn::Mul(hn::LoadU(df, panel.values + i), scale), df, panel.scaled + i);
      }
    }
    return;
  }
  for (int64_t m = 0; m < panel.width; ++m) {
    for (int64_t k = 0; k < length; k += kLanes) {
      const int64_t at = m * length + k;
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

extern const TileKernels ADADIM_TARGET;
const TileKernels ADADIM_TARGET = {SpreadGroup, Prepare, Multiply};

}  // namespace adadim

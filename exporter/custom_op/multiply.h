// Prepared activations times a tile of layout 1. Only tile_kernels.cc includes this.
#ifndef ADADIM_MULTIPLY_H_
#define ADADIM_MULTIPLY_H_

#include "dot.h"
#include "simd.h"
#include "unpack.h"

namespace adadim {
namespace {

constexpr int kRegisterRows = HWY_MAX_BYTES == 64 || HWY_ARCH_ARM_A64 ? 8 : 4;  // of an interleaved panel, for the registers
constexpr int64_t kAhead = 2048;  // bytes of codes that are asked for in advance: the best of 0 to 16384, measured out of memory

// Where a tile's numbers are, and from which of the panel's rows on it is multiplied.
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
template <typename Form>
struct Groups {
  HWY_INLINE Groups(const TileRun& run, int64_t lane, int64_t segment)
      : run_(run), lane_(lane), segments_(run.w.geometry.group_size / segment) {}
  HWY_INLINE void Next() {
    if (left_-- > 0) return;
    left_ = segments_ - 1;
    if (group_ == run_.w.geometry.groups) return;  // the last block's filling, of activations that are zero
    scale = LoadScales(run_.w.weights, run_.scales + group_ * kTile + lane_);
    zero = ZeroPoints<Form::kLines>(run_.w, run_.zeros, group_++, lane_);
  }
  Floats scale = hn::Zero(df), zero = hn::Zero(df);

 private:
  const TileRun& run_;
  const int64_t lane_, segments_;
  int64_t group_ = 0, left_ = 0;
};

// A block's codes in registers; those that will be wanted soon are asked for.
template <typename Form>
HWY_INLINE void NextCodes(const Form& form, const uint8_t* codes, Bytes q[kSteps]) {
  for (int64_t line = 0; line < Form::kLines; ++line) __builtin_prefetch(codes + kAhead + line * kLine);
  form.Unpack(codes, q);
}

// Distances in a panel's arrays (struct Panel): elements are floats, rounded values in fours, and scales.
template <bool kInterleaved>
struct Steps {
  explicit Steps(const TileWeights& w, int64_t segment)
      : row(kInterleaved ? 1 : w.length),
        step(kInterleaved ? kPanel : 1),
        scale_row(kInterleaved ? 1 : w.length / segment),
        scale_step(kInterleaved ? kPanel : 1) {}
  const int64_t row, step, scale_row, scale_step;
};

// out[kRows][lanes of 16] = rounded activations times a tile.
template <typename Form, int kRows, bool kInterleaved, bool kPerOc, int64_t kSegment>
void MultiplyInt8(const TileRun& run, int64_t lane) {
  constexpr int64_t kSegmentSteps = kSegment / 4;
  const Steps<kInterleaved> steps(run.w, kSegment);
  const int64_t row_bytes = kInterleaved ? 4 : steps.row, step_bytes = 4 * steps.step;
  const int8_t* a = run.panel.rounded + run.first * row_bytes;
  const float* scales = run.panel.scales + run.first * steps.scale_row;
  const float* corrections = run.panel.corrections + run.first * (kPerOc ? steps.scale_row : 1);
  const uint8_t* codes = run.codes + lane * 4;
  const Form form(run.w);
  Groups<Form> groups(run, lane, kSegment);
  Floats total[kRows];
  for (int m = 0; m < kRows; ++m) total[m] = hn::Zero(df);
  for (int64_t block = 0; block < run.w.geometry.blocks; ++block, codes += Form::kLines * kLine) {
    Bytes q[kSteps];
    NextCodes(form, codes, q);
#pragma GCC unroll 2
    for (int64_t segment = 0; segment < kBlock / kSegment; ++segment) {
      Ints sum[kRows];
      for (int m = 0; m < kRows; ++m) sum[m] = hn::Zero(di);
#pragma GCC unroll 8
      for (int64_t step = 0; step < kSegmentSteps; ++step, a += step_bytes) {
#pragma GCC unroll 8
        for (int m = 0; m < kRows; ++m) {
          const auto four = hn::BitCast(SignedByteTag(), Broadcast4(a + m * row_bytes));
          sum[m] = Dot4<Form::kNarrow>(sum[m], q[segment * kSegmentSteps + step], four);
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
template <typename Form, int kRows, bool kInterleaved, bool kPerOc>
void MultiplyFloat(const TileRun& run, int64_t lane) {
  constexpr int64_t kSegment = 16;
  const Steps<kInterleaved> steps(run.w, kSegment);
  const float* a = (kPerOc ? run.panel.values : run.panel.scaled) + run.first * steps.row;
  const float* zeros = kPerOc ? nullptr : run.spread->float_zeros;
  const uint8_t* codes = run.codes + lane * 4;
  const Form form(run.w);
  Groups<Form> groups(run, lane, kSegment);
  Floats total[kRows];
  for (int m = 0; m < kRows; ++m) total[m] = hn::Zero(df);
  for (int64_t block = 0; block < run.w.geometry.blocks; ++block, codes += Form::kLines * kLine) {
    Bytes q[kSteps];
    NextCodes(form, codes, q);
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

template <typename Form, int kRows, bool kInterleaved>
void MultiplyRows(const TileRun& run) {
  using Float = typename Form::Float;
  const bool per_oc = run.w.weights.per_oc;
  for (int64_t lane = 0; lane < kTile; lane += kLanes) {
    if (run.w.precision == Precision::kFloat) {
      (per_oc ? MultiplyFloat<Float, kRows, kInterleaved, true> : MultiplyFloat<Float, kRows, kInterleaved, false>)(run, lane);
    } else if (!per_oc) {
      MultiplyInt8<Form, kRows, kInterleaved, false, kBlock>(run, lane);
    } else if (!Form::kHalves || run.w.geometry.group_size % kBlock == 0) {
      MultiplyInt8<Form, kRows, kInterleaved, true, kBlock>(run, lane);
    } else if constexpr (Form::kHalves) {
      MultiplyInt8<Form, kRows, kInterleaved, true, kBlock / 2>(run, lane);
    }
  }
}

// `Form`: Codes of unpack.h, or one of levels.h.
template <typename Form>
void MultiplyPanel(TileRun& run) {
  if (!run.panel.interleaved) {
    return run.panel.width == 1 ? MultiplyRows<Form, 1, false>(run) : MultiplyRows<Form, kContiguousRows, false>(run);
  }
  for (; run.first < run.panel.rows; run.first += kRegisterRows, run.out += kRegisterRows * kTile) {
    MultiplyRows<Form, kRegisterRows, true>(run);
  }
}

}  // namespace
}  // namespace adadim

#endif  // ADADIM_MULTIPLY_H_

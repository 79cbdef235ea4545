// Codes and zero points of layout 1, from bits to registers. Only tile_kernels.cc includes this.
#ifndef ADADIM_UNPACK_H_
#define ADADIM_UNPACK_H_

#include <type_traits>

#include "simd.h"

namespace adadim {
namespace {

// Bits from kShift on of each byte, with a neighbour's bits above: x86 shifts no bytes.
template <int kShift>
HWY_INLINE Bytes Shifted(Bytes line) {
  const WordTag dw;
  return hn::BitCast(db, hn::ShiftRight<kShift>(hn::BitCast(dw, line)));
}

template <int kShift>
HWY_INLINE Bytes Field(Bytes line, uint8_t mask) {
  return hn::And(Shifted<kShift>(line), hn::Set(db, mask));
}

// The codes of a block, four input channels for each lane's output in each register. levels.h has more such forms: `kLines` are
// those of a block, `kNarrow` says that what is unpacked is below 128 (dot.h), `kHalves`
// that groups may be half blocks; floats are multiplied in the form `Float`.
template <int kBits>
struct Codes;

template <>
struct Codes<8> {
  static constexpr int kLines = 8;
  static constexpr bool kNarrow = false;
  static constexpr bool kHalves = true;
  using Float = Codes;
  explicit Codes(const TileWeights&) {}
  static HWY_INLINE void Unpack(const uint8_t* block, Bytes q[kSteps]) {
    for (int64_t line = 0; line < 8; ++line) q[line] = hn::LoadU(db, block + line * kLine);
  }
};

template <>
struct Codes<4> {
  static constexpr int kLines = 4;
  static constexpr bool kNarrow = true;
  static constexpr bool kHalves = true;
  using Float = Codes;
  explicit Codes(const TileWeights&) {}
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
  static constexpr int kLines = 2;
  static constexpr bool kNarrow = true;
  static constexpr bool kHalves = true;
  using Float = Codes;
  explicit Codes(const TileWeights&) {}
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
  static constexpr int kLines = 3;
  static constexpr bool kNarrow = true;
  static constexpr bool kHalves = true;
  using Float = Codes;
  explicit Codes(const TileWeights&) {}
  static HWY_INLINE void Unpack(const uint8_t* block, Bytes q[kSteps]) {
    const Bytes four = hn::Set(db, 4);
    Bytes line[3];
    for (int64_t l = 0; l < 3; ++l) {
      line[l] = hn::LoadU(db, block + l * kLine);
      q[2 * l] = hn::And(line[l], hn::Set(db, 7));
      q[2 * l + 1] = Field<3>(line[l], 7);
    }
    q[6] = hn::OrAnd(Field<6>(line[0], 3), Shifted<4>(line[2]), four);
    q[7] = hn::OrAnd(Field<6>(line[1], 3), Shifted<5>(line[2]), four);
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

// Zero points of a group of outputs, a stream of bits, each to a byte of its own: a lane of as many bytes as a byte holds zero
// points takes one byte of the stream and moves its bits apart.
template <int kBits>
void UnpackZeroRow(const uint8_t* packed, int64_t length, uint8_t* zeros) {
  const hn::CappedTag<uint8_t, kBlock> d;
  const hn::Repartition<std::conditional_t<kBits == 4, uint16_t, uint32_t>, decltype(d)> wide;
  const hn::Rebind<uint8_t, decltype(wide)> narrow;
  for (int64_t k = 0; k < length; k += static_cast<int64_t>(hn::Lanes(d))) {
    auto lanes = hn::PromoteTo(wide, hn::LoadU(narrow, packed + k * kBits / 8));
    if (kBits == 2) lanes = hn::Or(lanes, hn::ShiftLeft<12>(lanes));
    lanes = hn::Or(lanes, hn::ShiftLeft<8 - kBits>(lanes));
    hn::StoreU(hn::And(hn::BitCast(d, lanes), hn::Set(d, (1 << kBits) - 1)), d, zeros + k);
  }
}

}  // namespace
}  // namespace adadim

#endif  // ADADIM_UNPACK_H_

// Codes of MatMulLevels, looked up: forms as those of unpack.h. Only tile_kernels.cc includes this.
#ifndef ADADIM_LEVELS_H_
#define ADADIM_LEVELS_H_

#include "unpack.h"

namespace adadim {
namespace {

// Entry i of 64 for every byte i below 64.
#if HWY_ARCH_ARM_A64
class Lookup64 {
 public:
  explicit Lookup64(const uint8_t* entries) {
    for (int64_t part = 0; part < 4; ++part) table_.val[part] = vld1q_u8(entries + 16 * part);
  }
  HWY_INLINE Bytes operator()(Bytes index) const { return Bytes{vqtbl4q_u8(table_, index.raw)}; }

 private:
  uint8x16x4_t table_;
};
#elif defined(__AVX512VBMI__)
class Lookup64 {
 public:
  explicit Lookup64(const uint8_t* entries) : table_(hn::LoadU(db, entries)) {}
  HWY_INLINE Bytes operator()(Bytes index) const { return Bytes{_mm512_permutexvar_epi8(index.raw, table_.raw)}; }

 private:
  const Bytes table_;
};
#else
class Lookup64 {
 public:
  explicit Lookup64(const uint8_t* entries) {
    for (int64_t part = 0; part < 4; ++part) parts_[part] = hn::LoadDup128(db, entries + 16 * part);
  }
  HWY_INLINE Bytes operator()(Bytes index) const {
    const Bytes low = Choose<4>(index, hn::TableLookupBytes(parts_[1], index), hn::TableLookupBytes(parts_[0], index));
    const Bytes high = Choose<4>(index, hn::TableLookupBytes(parts_[3], index), hn::TableLookupBytes(parts_[2], index));
    return Choose<5>(index, high, low);
  }

 private:
  // `yes` in bytes whose bit kBit is set.
  template <int kBit>
  static HWY_INLINE Bytes Choose(Bytes index, Bytes yes, Bytes no) {
#if HWY_MAX_BYTES == 64
    return Bytes{_mm512_mask_mov_epi8(no.raw, _mm512_test_epi8_mask(index.raw, _mm512_set1_epi8(1 << kBit)), yes.raw)};
#else
    const SignedByteTag signs;
    const auto top = hn::BitCast(signs, hn::ShiftLeft<7 - kBit>(hn::BitCast(WordTag(), index)));
    return hn::BitCast(db, hn::IfNegativeThenElse(top, hn::BitCast(signs, yes), hn::BitCast(signs, no)));
#endif
  }

  Bytes parts_[4];
};
#endif

// Codes of 3 or 4 bits.
template <int kBits, bool kSmall>
struct Levels {
  static constexpr int kLines = kBits;
  static constexpr bool kNarrow = kSmall, kHalves = false;
  using Float = Levels<kBits, false>;
  explicit Levels(const TileWeights& w) : table(hn::LoadDup128(db, w.tables->first)) {}
  HWY_INLINE void Unpack(const uint8_t* block, Bytes q[kSteps]) const {
    Codes<kBits>::Unpack(block, q);
#pragma GCC unroll 8
    for (int64_t step = 0; step < kSteps; ++step) q[step] = hn::TableLookupBytes(table, q[step]);
  }
  const Bytes table;
};
template <bool kSmall>
using Levels3 = Levels<3, kSmall>;
template <bool kSmall>
using Levels4 = Levels<4, kSmall>;

// Four bits that stand for two values: two codes of 2 bits, or one of a pair.
template <bool kSmall>
struct Nibbles {
  static constexpr int kLines = 2;
  static constexpr bool kNarrow = kSmall, kHalves = false;
  using Float = Nibbles<false>;
  explicit Nibbles(const TileWeights& w)
      : first(hn::LoadDup128(db, w.tables->first)), second(hn::LoadDup128(db, w.tables->second)) {}
  HWY_INLINE void Unpack(const uint8_t* block, Bytes q[kSteps]) const {
#pragma GCC unroll 2
    for (int64_t line = 0; line < 2; ++line) {
      const Bytes two = hn::LoadU(db, block + line * kLine), low = hn::And(two, hn::Set(db, 15)), high = Field<4>(two, 15);
      q[4 * line] = hn::TableLookupBytes(first, low);
      q[4 * line + 1] = hn::TableLookupBytes(second, low);
      q[4 * line + 2] = hn::TableLookupBytes(first, high);
      q[4 * line + 3] = hn::TableLookupBytes(second, high);
    }
  }
  const Bytes first, second;
};

// Six bits that stand for a pair.
template <bool kSmall>
struct Sixes {
  static constexpr int kLines = 3;
  static constexpr bool kNarrow = kSmall, kHalves = false;
  using Float = Sixes<false>;
  explicit Sixes(const TileWeights& w) : first(w.tables->first), second(w.tables->second) {}
  HWY_INLINE void Unpack(const uint8_t* block, Bytes q[kSteps]) const {
    Bytes line[3];
#pragma GCC unroll 3
    for (int64_t l = 0; l < 3; ++l) {
      line[l] = hn::LoadU(db, block + l * kLine);
      LookUp(hn::And(line[l], hn::Set(db, 63)), q + 2 * l);
    }
    const Bytes low = hn::OrAnd(Field<6>(line[0], 3), Shifted<4>(line[1]), hn::Set(db, 12));
    LookUp(hn::OrAnd(low, Shifted<2>(line[2]), hn::Set(db, 48)), q + 6);
  }
  HWY_INLINE void LookUp(Bytes codes, Bytes q[2]) const {
    q[0] = first(codes);
    q[1] = second(codes);
  }
  const Lookup64 first, second;
};

}  // namespace
}  // namespace adadim

#endif  // ADADIM_LEVELS_H_

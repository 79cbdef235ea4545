// Dot4: each int32 lane of `sum` plus four products of uint8 codes and int8 activations, exact for every code; kNarrow
// promises codes below 128, which are cheaper on processors without a mixed dot product. Highway 1.0 has none of this.
#ifndef ADADIM_DOT_H_
#define ADADIM_DOT_H_

#include "simd.h"

namespace adadim {
namespace {

// Where the processor has a mixed dot product, kNarrow changes nothing.
#if defined(__AVX512VNNI__) || defined(__ARM_FEATURE_MATMUL_INT8)
constexpr bool kMixedDot = true;
#else
constexpr bool kMixedDot = false;
#endif

#if HWY_ARCH_X86

#if defined(__AVX512VNNI__)
template <bool kNarrow>
HWY_INLINE hn::Vec512<int32_t> Dot4(hn::Vec512<int32_t> sum, hn::Vec512<uint8_t> codes, hn::Vec512<int8_t> a) {
  return hn::Vec512<int32_t>{_mm512_dpbusd_epi32(sum.raw, codes.raw, a.raw)};
}
#else

// Products of two neighbours: as int16 where they cannot overflow, else bytes 0, 2 and 1, 3 of each lane apart.
#define ADADIM_DOT4(SIZE, INT)                                                                                            \
  template <bool kNarrow>                                                                                                 \
  HWY_INLINE hn::Vec##SIZE<int32_t> Dot4(hn::Vec##SIZE<int32_t> sum, hn::Vec##SIZE<uint8_t> codes, hn::Vec##SIZE<int8_t> a) { \
    if (kNarrow) {                                                                                                        \
      const auto pairs = ADADIM_OP(maddubs_epi16)(codes.raw, a.raw);                                                       \
      return hn::Vec##SIZE<int32_t>{                                                                                      \
          ADADIM_OP(add_epi32)(sum.raw, ADADIM_OP(madd_epi16)(pairs, ADADIM_OP(set1_epi16)(1)))};                           \
    }                                                                                                                     \
    const auto even = ADADIM_OP(madd_epi16)(ADADIM_OP(and_##INT)(codes.raw, ADADIM_OP(set1_epi16)(0xFF)),                  \
                                            ADADIM_OP(srai_epi16)(ADADIM_OP(slli_epi16)(a.raw, 8), 8));                    \
    const auto odd = ADADIM_OP(madd_epi16)(ADADIM_OP(srli_epi16)(codes.raw, 8), ADADIM_OP(srai_epi16)(a.raw, 8));          \
    return hn::Vec##SIZE<int32_t>{ADADIM_OP(add_epi32)(sum.raw, ADADIM_OP(add_epi32)(even, odd))};                         \
  }

#if HWY_TARGET == HWY_AVX2
#define ADADIM_OP(name) _mm256_##name
ADADIM_DOT4(256, si256)
#else
#define ADADIM_OP(name) _mm_##name
ADADIM_DOT4(128, si128)
#endif
#undef ADADIM_OP
#undef ADADIM_DOT4

#endif  // HWY_TARGET

#elif HWY_ARCH_ARM_A64

template <bool kNarrow>
HWY_INLINE hn::Vec128<int32_t> Dot4(hn::Vec128<int32_t> sum, hn::Vec128<uint8_t> codes, hn::Vec128<int8_t> a) {
#if defined(__ARM_FEATURE_MATMUL_INT8)
  return hn::Vec128<int32_t>{vusdotq_s32(sum.raw, codes.raw, a.raw)};
#elif defined(__ARM_FEATURE_DOTPROD)
  if (kNarrow) return hn::Vec128<int32_t>{vdotq_s32(sum.raw, vreinterpretq_s8_u8(codes.raw), a.raw)};
  // q = (q - 128) + 128, and 128 = 64 + 64
  const int8x16_t centred = vreinterpretq_s8_u8(veorq_u8(codes.raw, vdupq_n_u8(0x80))), half = vdupq_n_s8(64);
  return hn::Vec128<int32_t>{vdotq_s32(vdotq_s32(vdotq_s32(sum.raw, centred, a.raw), half, a.raw), half, a.raw)};
#else
  if (kNarrow) {
    const int8x16_t q = vreinterpretq_s8_u8(codes.raw);
    const int16x8_t low = vmull_s8(vget_low_s8(q), vget_low_s8(a.raw)), high = vmull_high_s8(q, a.raw);
    return hn::Vec128<int32_t>{vpadalq_s16(sum.raw, vpaddq_s16(low, high))};
  }
  // int16 products can overflow when they are added: bytes apart, widened
  const int16x8_t q_low = vreinterpretq_s16_u16(vmovl_u8(vget_low_u8(codes.raw)));
  const int16x8_t q_high = vreinterpretq_s16_u16(vmovl_high_u8(codes.raw));
  const int16x8_t a_low = vmovl_s8(vget_low_s8(a.raw)), a_high = vmovl_high_s8(a.raw);
  const int32x4_t pair0 = vpaddq_s32(vmull_s16(vget_low_s16(q_low), vget_low_s16(a_low)), vmull_high_s16(q_low, a_low));
  const int32x4_t pair1 = vpaddq_s32(vmull_s16(vget_low_s16(q_high), vget_low_s16(a_high)), vmull_high_s16(q_high, a_high));
  return hn::Vec128<int32_t>{vaddq_s32(sum.raw, vpaddq_s32(pair0, pair1))};
#endif
}

#else
#error "no integer dot product for this processor"
#endif

}  // namespace
}  // namespace adadim

#endif  // ADADIM_DOT_H_

// IEEE half precision, one value at a time.
#ifndef ADADIM_HALF_H_
#define ADADIM_HALF_H_

#include <cstdint>
#include <cstring>

namespace adadim {

static inline float BitsToFloat(uint32_t bits) {
  float value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

static inline uint32_t FloatToBits(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  return bits;
}

static inline float HalfToFloat(uint16_t half) {
  const uint32_t sign = static_cast<uint32_t>(half & 0x8000) << 16;
  const uint32_t magnitude = static_cast<uint32_t>(half & 0x7FFF) << 13;
  if (magnitude >= 0x7C00u << 13) return BitsToFloat(sign | 0x7F800000u | magnitude);  // infinity, NaN
  // The exponent's bias grows from 15 to 127; the product also makes subnormals normal.
  return BitsToFloat(sign | FloatToBits(BitsToFloat(magnitude) * 0x1p112f));
}

// Rounds to nearest, ties to even.
static inline uint16_t FloatToHalf(float value) {
  const uint32_t bits = FloatToBits(value);
  const uint16_t sign = static_cast<uint16_t>(bits >> 16 & 0x8000);
  const uint32_t magnitude = bits & 0x7FFFFFFF;
  if (magnitude > 0x7F800000) return static_cast<uint16_t>(sign | 0x7E00);
  if (magnitude >= 0x477FF000) return static_cast<uint16_t>(sign | 0x7C00);  // rounds to 65536 or more
  if (magnitude < 0x38800000) {  // subnormal: the sum with 0.5 rounds at the last bit of a half
    return static_cast<uint16_t>(sign | (FloatToBits(BitsToFloat(magnitude) + 0.5f) - 0x3F000000));
  }
  return static_cast<uint16_t>(sign | ((magnitude - (112u << 23) + 0xFFF + (magnitude >> 13 & 1)) >> 13));
}

}  // namespace adadim

#endif  // ADADIM_HALF_H_

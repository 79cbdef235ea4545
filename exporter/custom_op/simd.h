// Vectors of one instruction set, as the kernels of layout 1 use them. Only tile_kernels.cc includes this.
#ifndef ADADIM_SIMD_H_
#define ADADIM_SIMD_H_

#include <cstdint>
#include <cstring>

#define HWY_COMPILE_ONLY_STATIC
#include "hwy/highway.h"
#include "tiles.h"

namespace adadim {
namespace {

namespace hn = hwy::HWY_NAMESPACE;

// Where a compiler flag that it wants is missing (AES, say), Highway takes a lesser instruction set and says nothing.
#if defined(__AVX512VNNI__)
static_assert(HWY_MAX_BYTES == 64, "not AVX-512");
#elif defined(__AVX2__)
static_assert(HWY_MAX_BYTES == 32, "not AVX2");
#endif

using FloatTag = hn::ScalableTag<float>;
using IntTag = hn::RebindToSigned<FloatTag>;
using UnsignedTag = hn::RebindToUnsigned<FloatTag>;
using ByteTag = hn::Repartition<uint8_t, FloatTag>;
using SignedByteTag = hn::Repartition<int8_t, FloatTag>;
using WordTag = hn::Repartition<uint16_t, FloatTag>;
using Floats = hn::Vec<FloatTag>;
using Ints = hn::Vec<IntTag>;
using Bytes = hn::Vec<ByteTag>;

constexpr FloatTag df;
constexpr hn::Rebind<hwy::float16_t, FloatTag> dh;
constexpr IntTag di;
constexpr UnsignedTag du;
constexpr ByteTag db;
constexpr int64_t kLanes = HWY_MAX_BYTES / sizeof(float);  // outputs, or rows of activations, of a register
constexpr int64_t kSteps = kBlock / 4;  // of four input channels in a block

HWY_INLINE Floats LoadScales(const Weights& w, int64_t index) {
  if (!w.float16_scales) return hn::LoadU(df, static_cast<const float*>(w.scales) + index);
  return hn::PromoteTo(df, hn::LoadU(dh, static_cast<const hwy::float16_t*>(w.scales) + index));
}

// The same four bytes in each lane.
HWY_INLINE Ints Broadcast4(const void* bytes) {
  int32_t four;
  hwy::CopyBytes<4>(bytes, &four);
  return hn::Set(di, four);
}

}  // namespace
}  // namespace adadim

#endif  // ADADIM_SIMD_H_

// Which of the compiled instruction sets the processor has.
#include "tiles.h"

#if defined(__aarch64__)
#if defined(__APPLE__)
#include <sys/sysctl.h>
#else
#include <sys/auxv.h>
#endif
#endif

namespace adadim {

#if defined(__x86_64__)

extern const TileKernels kTilesSse4, kTilesAvx2, kTilesAvx512, kTilesVbmi;

const TileKernels& BestTileKernels() {
  static const TileKernels& best = [&]() -> const TileKernels& {
    __builtin_cpu_init();
    const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("bmi2");
    if (avx2 && __builtin_cpu_supports("avx512vnni") && __builtin_cpu_supports("avx512bw") &&
        __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl")) {
#if defined(ADADIM_VBMI)
      if (__builtin_cpu_supports("avx512vbmi")) return kTilesVbmi;
#endif
      return kTilesAvx512;
    }
    return avx2 ? kTilesAvx2 : kTilesSse4;
  }();
  return best;
}

#else

extern const TileKernels kTilesNeon, kTilesDotprod, kTilesI8mm;

#if defined(__APPLE__)
static bool Has(const char* feature) {
  int value = 0;
  size_t size = sizeof value;
  return sysctlbyname(feature, &value, &size, nullptr, 0) == 0 && value != 0;
}
static bool HasDotprod() { return Has("hw.optional.arm.FEAT_DotProd"); }
static bool HasI8mm() { return Has("hw.optional.arm.FEAT_I8MM"); }
#else
// Bits of the kernel's ABI (asm/hwcap.h), which older headers lack.
static bool HasDotprod() { return getauxval(AT_HWCAP) >> 20 & 1; }
static bool HasI8mm() { return getauxval(AT_HWCAP2) >> 13 & 1; }
#endif

const TileKernels& BestTileKernels() {
  static const TileKernels& best = HasI8mm() ? kTilesI8mm : HasDotprod() ? kTilesDotprod : kTilesNeon;
  return best;
}

#endif

}  // namespace adadim

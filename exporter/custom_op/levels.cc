// The tables of MatMulLevels.
#include <algorithm>

#include "tiles.h"

namespace adadim {

LevelTables::LevelTables(const Weights& w) : small(true), offset(64) {
  if (w.levels == nullptr) return;
  const int64_t count = int64_t{1} << w.bits;
  const auto outside = [](int8_t level) { return level < -64 || level > 63; };
  if (std::any_of(w.levels, w.levels + w.dims * count, outside)) {
    small = false;
    offset = 128;
  }
  const auto entry = [&](int64_t i) { return static_cast<uint8_t>(w.levels[i] + offset); };
  const bool twos = w.dims == 1 && w.bits == 2;
  for (int64_t i = 0; i < (twos ? 16 : count); ++i) {
    first[i] = entry(twos ? i & 3 : i);
    if (twos) second[i] = entry(i >> 2);
    if (w.dims == 2) second[i] = entry(count + i);
  }
}

}  // namespace adadim

// The kernels of layout 1. Compiled once for each instruction set, with its compiler flags and ADADIM_TARGET as its name;
// only the table at the end leaves this file, so that no function of one set can stand in for another's.
#include "half.h"
#include "levels.h"
#include "multiply.h"
#include "round.h"
#include "tiles.h"
#include "turn.h"

namespace adadim {
namespace {

void Widen(const uint16_t* halves, int64_t count, float* floats) {
  int64_t i = 0;
  for (; i + kLanes <= count; i += kLanes) {
    hn::StoreU(hn::PromoteTo(df, hn::LoadU(dh, reinterpret_cast<const hwy::float16_t*>(halves + i))), df, floats + i);
  }
  for (; i < count; ++i) floats[i] = HalfToFloat(halves[i]);
}

void Narrow(const float* floats, int64_t count, uint16_t* halves) {
  int64_t i = 0;
#if HWY_TARGET != HWY_SSE4  // where Highway 1.0 cuts instead of rounding
  for (; i + kLanes <= count; i += kLanes) {
    hn::StoreU(hn::DemoteTo(dh, hn::LoadU(df, floats + i)), dh, reinterpret_cast<hwy::float16_t*>(halves + i));
  }
#endif
  for (; i < count; ++i) halves[i] = FloatToHalf(floats[i]);
}

template <template <bool> class Form>
void MultiplyLevels(TileRun& run) {
  if constexpr (!kMixedDot) {
    if (run.w.tables->small) return MultiplyPanel<Form<true>>(run);
  }
  MultiplyPanel<Form<false>>(run);
}

void Multiply(const TileWeights& w, const Spread* spread, const Panel& panel, int64_t tile, float* out) {
  const Geometry& g = w.geometry;
  const int64_t zero_bytes = CeilDiv(g.groups * ZeroBits(w.weights), 32) * kLine;
  TileRun run{w, spread, panel, w.weights.codes + tile * g.blocks * Lines(w.weights) * kLine,
              w.shared_zeros == nullptr ? w.weights.zero_points + tile * zero_bytes : nullptr, tile * g.groups * kTile, 0, out};
  if (w.tables != nullptr) {
    switch (Lines(w.weights)) {
      case 2: return MultiplyLevels<Nibbles>(run);
      case 3: return w.weights.dims == 2 ? MultiplyLevels<Sixes>(run) : MultiplyLevels<Levels3>(run);
      default: return MultiplyLevels<Levels4>(run);
    }
  }
  switch (w.weights.bits) {
    case 2: return MultiplyPanel<Codes<2>>(run);
    case 3: return MultiplyPanel<Codes<3>>(run);
    case 4: return MultiplyPanel<Codes<4>>(run);
    default: return MultiplyPanel<Codes<8>>(run);
  }
}

}  // namespace

extern const TileKernels ADADIM_TARGET;
const TileKernels ADADIM_TARGET = {SpreadGroup, Prepare, Widen, Narrow, Multiply, TurnRun};

}  // namespace adadim

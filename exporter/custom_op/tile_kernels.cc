// The kernels of layout 1. Compiled once for each instruction set, with its compiler flags and ADADIM_TARGET as its name;
// only the table at the end leaves this file, so that no function of one set can stand in for another's.
#include "half.h"
#include "multiply.h"
#include "round.h"
#include "tiles.h"

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

}  // namespace

extern const TileKernels ADADIM_TARGET;
const TileKernels ADADIM_TARGET = {SpreadGroup, Prepare, Widen, Narrow, Multiply};

}  // namespace adadim

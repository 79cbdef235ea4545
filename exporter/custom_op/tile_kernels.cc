// The kernels of layout 1. Compiled once for each instruction set, with its compiler flags and ADADIM_TARGET as its name;
// only the table at the end leaves this file, so that no function of one set can stand in for another's.
#include "multiply.h"
#include "round.h"
#include "tiles.h"

namespace adadim {
namespace {

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
const TileKernels ADADIM_TARGET = {SpreadGroup, Prepare, Multiply};

}  // namespace adadim

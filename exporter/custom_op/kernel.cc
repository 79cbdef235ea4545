#include "kernel.h"

#include "streams.h"
#include "tiles.h"

namespace adadim {

void MatMul(const Weights& weights, const Product& product, const ParallelFor& parallel_for) {
  (weights.layout == 0 ? MatMulStreams : MatMulTiles)(weights, product, parallel_for);
}

}  // namespace adadim

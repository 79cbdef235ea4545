// Layout 0: every row one little-endian bit stream, whatever the group size. Right, and not fast.
#ifndef ADADIM_STREAMS_H_
#define ADADIM_STREAMS_H_

#include "kernel.h"

namespace adadim {

void MatMulStreams(const Weights& weights, const Product& product, const ParallelFor& parallel_for);

}  // namespace adadim

#endif  // ADADIM_STREAMS_H_

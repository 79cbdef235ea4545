#ifndef ADADIM_ARENA_H_
#define ADADIM_ARENA_H_

#include <cstdint>
#include <memory>

#include "shapes.h"

namespace adadim {

// Room for everything that is computed from activations, cut into arrays that start at whole cache lines. The same arrays are
// taken twice: first to measure, from nothing, then for good.
class Arena {
 public:
  template <typename T>
  T* Take(int64_t count) {
    uint8_t* const at = bytes_ == nullptr ? nullptr : start_ + size_;
    size_ += (count * static_cast<int64_t>(sizeof(T)) + kLine - 1) / kLine * kLine;
    return reinterpret_cast<T*>(at);
  }
  void Allocate() {
    bytes_.reset(new uint8_t[static_cast<size_t>(size_ + kLine)]);
    start_ = bytes_.get() + (kLine - reinterpret_cast<uintptr_t>(bytes_.get()) % kLine);
    size_ = 0;
  }

 private:
  int64_t size_ = 0;
  std::unique_ptr<uint8_t[]> bytes_;
  uint8_t* start_ = nullptr;
};

}  // namespace adadim

#endif  // ADADIM_ARENA_H_

// The element types the kernels take.
#pragma once

namespace fastdiff::cuda {

enum class Element { kFloat32, kFloat16, kBfloat16 };

inline int bytes_of(Element element) { return element == Element::kFloat32 ? 4 : 2; }

}  // namespace fastdiff::cuda

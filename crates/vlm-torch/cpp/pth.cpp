// Writes a zip archive with a pickled dict that Python's torch.load(weights_only=True) reads.
//
// torch::pickle_save and JIT archives tag their aggregates with TorchScript types, which the
// weights-only loader refuses; a Pickler without tags writes the same as torch.save.
#include "guard.h"

#include <ATen/core/Dict.h>
#include <ATen/core/ivalue.h>
#include <caffe2/serialize/inline_container.h>
#include <torch/csrc/jit/serialization/pickler.h>

extern "C" {
// Writes `count` bytes. Returns 0, or -1 after vlm_set_error.
typedef int (*vlm_write)(void* context, const char* bytes, size_t count);
const char* vlm_last_error() noexcept;
}

extern "C" {

// `names[i]` has `name_sizes[i]` bytes of UTF-8. The tensors are detached and on the CPU.
int vlm_write_pth(
    const char* const* names, const size_t* name_sizes, at::Tensor* const* tensors, size_t count,
    vlm_write write, void* context) noexcept {
  return vlm::guard([&] {
    c10::Dict<std::string, at::Tensor> dict;
    for (size_t i = 0; i < count; ++i) {
      dict.insert(std::string(names[i], name_sizes[i]), *tensors[i]);
    }
    std::vector<char> pickled;
    torch::jit::Pickler pickler(
        [&](const char* bytes, size_t n) { pickled.insert(pickled.end(), bytes, bytes + n); },
        /*tensor_table=*/nullptr, /*type_renamer=*/nullptr, /*memoized_class_types=*/nullptr,
        /*get_tensor_id=*/nullptr, /*tag_aggregates=*/false);
    pickler.protocol();
    pickler.pushIValue(dict);
    pickler.stop();

    // A failure is reported only at the end: if the writer is told earlier, it throws a second
    // exception in its destructor, which ends the process.
    bool failed = false;
    caffe2::serialize::PyTorchStreamWriter writer([&](const void* bytes, size_t n) -> size_t {
      failed = failed || write(context, static_cast<const char*>(bytes), n) != 0;
      return n;
    });
    size_t index = 0;
    for (const auto& storage : pickler.tensorData()) {
      auto data = torch::jit::getWriteableTensorData(storage);
      writer.writeRecord("data/" + std::to_string(index++), data.data(), data.sizeInBytes());
    }
    writer.writeRecord("data.pkl", pickled.data(), pickled.size());
    writer.writeRecord("byteorder", "little", 6);
    writer.writeEndOfFile();
    TORCH_CHECK(!failed, vlm_last_error());
  });
}
}

// The operators of the fake device. The boxed fallback of the CUDA dispatch key passes every operator to
// `run_on_cpu`, except those that create, copy or view memory, which are implemented here.
#include "device.h"
#include "streams.h"

#include <ATen/ATen.h>
#include <ATen/EmptyTensor.h>
#include <ATen/ops/_reshape_alias_native.h>
#include <ATen/ops/as_strided_native.h>
#include <ATen/ops/unfold_native.h>
#include <ATen/ops/view_as_complex_native.h>
#include <ATen/ops/view_as_real_native.h>
#include <ATen/ops/view_native.h>
#include <torch/library.h>

#include <algorithm>
#include <cstring>
#include <sstream>
#include <string>

namespace fake {
namespace {

// ---- Operators that create, copy or view memory ---------------------------------------------------

constexpr auto kKeys = c10::DispatchKeySet(c10::DispatchKey::CUDA);

at::ScalarType kind_or_default(std::optional<at::ScalarType> kind) {
  return kind.value_or(at::typeMetaToScalarType(at::get_default_dtype()));
}

// Makes `device` the current device during its lifetime.
struct OnDevice {
  c10::DeviceIndex before = current_device;
  explicit OnDevice(std::optional<c10::Device> device) {
    if (device && device->has_index()) {
      TORCH_CHECK(device->index() < num_devices(), "CUDA error: invalid device ordinal");
      current_device = device->index();
    }
  }
  ~OnDevice() { current_device = before; }
};

at::Tensor empty(
    at::IntArrayRef size, std::optional<at::ScalarType> kind, std::optional<at::Layout>,
    std::optional<at::Device> device, std::optional<bool>, std::optional<at::MemoryFormat> format) {
  OnDevice on(device);
  return at::detail::empty_generic(size, &device_memory(), kKeys, kind_or_default(kind), format);
}

at::Tensor empty_strided(
    at::IntArrayRef size, at::IntArrayRef stride, std::optional<at::ScalarType> kind, std::optional<at::Layout>,
    std::optional<at::Device> device, std::optional<bool>) {
  OnDevice on(device);
  return at::detail::empty_strided_generic(size, stride, &device_memory(), kKeys, kind_or_default(kind));
}

// A CPU tensor with the same memory.
at::Tensor as_cpu(const at::Tensor& tensor) {
  if (!tensor.is_cuda()) {
    return tensor;
  }
  auto options = tensor.options().device(at::kCPU);
  if (tensor.numel() == 0) {
    return at::empty_strided(tensor.sizes(), tensor.strides(), options);
  }
  auto alias = at::from_blob(
      tensor.data_ptr(), tensor.sizes(), tensor.strides(), [keep = tensor](void*) {}, options);
  if (tensor.is_conj()) {
    alias._set_conj(true);
  }
  if (tensor.is_neg()) {
    alias._set_neg(true);
  }
  return alias;
}

const void* block_of(const at::Tensor& tensor) {
  return tensor.is_cuda() && tensor.has_storage() ? tensor.storage().data() : nullptr;
}

// The host waits for the current stream of the device.
void wait_for_stream(const at::Tensor& tensor, const std::string& reason) {
  count_wait(reason);
  const int device = tensor.device().index();
  host_waits(clock_of_stream(stream_of(device, current_stream_id(device))));
}

at::Tensor& copy_(at::Tensor& self, const at::Tensor& source, bool non_blocking) {
  const at::Tensor& on_device = self.is_cuda() ? self : source;
  begin_operation(on_device.device().index(), "a copy");
  access(block_of(source), false);
  access(block_of(self), true);
  const bool casts = self.scalar_type() != source.scalar_type();
  if (self.is_cuda() && source.is_cuda()) {
    TORCH_CHECK(self.device() == source.device(), "a copy from ", source.device(), " to ", self.device());
    count_launch(casts ? "copy_ (cast)" : "copy_");
  } else if (self.is_cuda()) {
    const bool is_pinned = source.is_pinned();
    count_launch("copy_ (host to device)");
    if (casts) {
      count_launch("copy_ (cast)");
    }
    if (!non_blocking) {
      wait_for_stream(self, is_pinned ? "blocking copy to the device" : "blocking copy to the device, pageable");
    } else if (!is_pinned) {
      count_wait("copy to the device from pageable memory");
    } else if (source.is_contiguous()) {
      reads_host_later(source.data_ptr(), source.nbytes());
    }
  } else if (non_blocking && !casts && self.is_pinned() && self.is_contiguous()) {
    count_launch("copy_ (device to host)");
    auto values = as_cpu(source).contiguous();
    writes_host_later(self.data_ptr(), values.data_ptr(), values.nbytes());
    return self;
  } else {
    wait_for_stream(source, "copy to the host");
  }
  at::NoGradGuard no_grad;
  c10::impl::ExcludeDispatchKeyGuard without_autograd(c10::autograd_dispatch_keyset);
  as_cpu(self).copy_(as_cpu(source));
  return self;
}

at::Tensor copy_from_and_resize(const at::Tensor& self, const at::Tensor& target) {
  at::Tensor resized = target;
  if (self.sizes() != target.sizes()) {
    resized.resize_(self.sizes());
  }
  const at::Tensor& on_device = self.is_cuda() ? self : resized;
  begin_operation(on_device.device().index(), "a copy");
  access(block_of(self), false);
  access(block_of(resized), true);
  c10::impl::ExcludeDispatchKeyGuard without_autograd(c10::autograd_dispatch_keyset);
  as_cpu(resized).copy_(as_cpu(self));
  return target;
}

at::Scalar local_scalar_dense(const at::Tensor& self) {
  begin_operation(self.device().index(), "item");
  access(block_of(self), false);
  wait_for_stream(self, "item");
  return as_cpu(self).item();
}

const at::Tensor& resize_(const at::Tensor& self, at::IntArrayRef size, std::optional<at::MemoryFormat>) {
  auto* impl = self.unsafeGetTensorImpl();
  const auto& storage = impl->unsafe_storage();
  const int64_t bytes = (c10::multiply_integers(size) + self.storage_offset()) * self.element_size();
  if (static_cast<int64_t>(storage.nbytes()) < bytes) {
    OnDevice on(self.device());
    auto data = device_memory().allocate(static_cast<size_t>(bytes));
    begin_operation(self.device().index(), "resize_");
    access(storage.data(), false);
    access(data.get(), true);
    std::memcpy(data.get(), storage.data(), storage.nbytes());
    storage.set_data_ptr_noswap(std::move(data));
    storage.set_nbytes(static_cast<size_t>(bytes));
  }
  impl->set_sizes_contiguous(size);
  return self;
}

at::Tensor& set_storage(
    at::Tensor& self, at::Storage storage, int64_t offset, at::IntArrayRef size, at::IntArrayRef stride) {
  auto* impl = self.unsafeGetTensorImpl();
  impl->set_storage_keep_dtype(std::move(storage));
  impl->set_sizes_and_strides(size, stride, offset);
  return self;
}

void record_stream_of(at::Tensor& self, c10::Stream stream) {
  record_stream(block_of(self), stream_of(stream.device_index(), stream.id()));
}

// ---- Every other operator -----------------------------------------------------------------------

template <typename Visit>
void each_tensor(const c10::IValue& value, Visit&& visit) {
  if (value.isTensor()) {
    visit(value.toTensor());
  } else if (value.isTensorList()) {
    for (const auto& tensor : value.toTensorVector()) {
      visit(tensor);
    }
  } else if (value.isOptionalTensorList()) {
    for (std::optional<at::Tensor> tensor : value.toOptionalTensorList()) {
      if (tensor) {
        visit(*tensor);
      }
    }
  }
}

// The common device of all arguments, which real kernels require.
std::optional<c10::Device> common_device(const std::string& name, const std::vector<c10::IValue>& args) {
  std::optional<c10::Device> common;
  // Scalar tensors may always be on the host; so may the indices of these operators.
  const bool takes_host_indices = name == "aten::index" || name == "aten::_index_put_impl_";
  for (const auto& arg : args) {
    each_tensor(arg, [&](const at::Tensor& tensor) {
      if (!tensor.defined()) {
        return;
      }
      if (tensor.is_cuda()) {
        TORCH_CHECK(!common || *common == tensor.device(), name, ": tensors on ", *common, " and ", tensor.device());
        common = tensor.device();
      } else {
        TORCH_CHECK(
            takes_host_indices || tensor.dim() == 0 || tensor.numel() == 0, name,
            ": Expected all tensors to be on the same device, one of ", tensor.sizes(), " is on the CPU");
      }
    });
  }
  return common;
}

// Operators for which the host must read values, because the size of the result depends on them.
void count_hidden_waits(const std::string& name, const at::Tensor& on_device) {
  if (name == "aten::bincount") {
    wait_for_stream(on_device, "bincount: smallest value");
    wait_for_stream(on_device, "bincount: largest value");
  } else if (name == "aten::nonzero" || name == "aten::masked_select" || name == "aten::_unique2") {
    wait_for_stream(on_device, name);
  }
}

c10::IValue to_cpu(const c10::IValue& value) {
  if (value.isTensor()) {
    return value.toTensor().defined() ? c10::IValue(as_cpu(value.toTensor())) : value;
  }
  if (value.isTensorList()) {
    std::vector<at::Tensor> list;
    for (const auto& tensor : value.toTensorVector()) {
      list.push_back(as_cpu(tensor));
    }
    return list;
  }
  if (value.isOptionalTensorList()) {
    c10::List<std::optional<at::Tensor>> list;
    for (std::optional<at::Tensor> tensor : value.toOptionalTensorList()) {
      list.push_back(tensor ? std::optional<at::Tensor>(as_cpu(*tensor)) : tensor);
    }
    return list;
  }
  if (value.isDevice()) {
    return c10::Device(c10::kCPU);
  }
  // A generator of the device cannot be used on the CPU.
  return value.isGenerator() ? c10::IValue() : value;
}

bool is_written(const c10::Argument& argument) {
  const auto* alias = argument.alias_info();
  if (alias == nullptr) {
    return false;
  }
  const auto& of_elements = alias->containedTypes();
  return alias->isWrite() ||
         std::any_of(of_elements.begin(), of_elements.end(), [](const auto& element) { return element.isWrite(); });
}

void run_on_cpu(const c10::OperatorHandle& op, c10::DispatchKeySet, torch::jit::Stack* stack) {
  const auto& schema = op.schema();
  const size_t count = schema.arguments().size();
  const auto args = torch::jit::last(*stack, count).vec();
  const auto device = common_device(schema.name(), args);
  if (schema.name() == "aten::_softmax") {
    std::ostringstream shape;
    shape << args[0].toTensor().sizes();
    count_attention_shape(shape.str());
  }
  count_launch(schema.name() + (schema.overload_name().empty() ? "" : "." + schema.overload_name()));
  begin_operation(device ? device->index() : current_device, schema.name());
  for (size_t i = 0; i < count; ++i) {
    each_tensor(args[i], [&](const at::Tensor& tensor) {
      if (tensor.defined()) {
        access(block_of(tensor), is_written(schema.arguments()[i]));
      }
    });
  }
  if (!args.empty() && args[0].isTensor() && args[0].toTensor().defined() && args[0].toTensor().is_cuda()) {
    count_hidden_waits(schema.name(), args[0].toTensor());
  }

  torch::jit::Stack cpu_args;
  for (const auto& arg : args) {
    cpu_args.push_back(to_cpu(arg));
  }
  torch::jit::drop(*stack, count);
  torch::jit::Stack results = cpu_args;
  op.redispatchBoxed(c10::DispatchKeySet(c10::DispatchKey::CPU), &results);

  auto to_device = [&](const at::Tensor& result) -> at::Tensor {
    if (!result.defined()) {
      return result;
    }
    for (size_t i = 0; i < count; ++i) {
      const bool is_in_place =
          cpu_args[i].isTensor() && cpu_args[i].toTensor().defined() && cpu_args[i].toTensor().is_same(result);
      if (is_in_place) {
        at::Tensor arg = args[i].toTensor();
        if (arg.sizes() != result.sizes()) {
          arg.resize_(result.sizes());
          as_cpu(arg).copy_(result);
        }
        return arg;
      }
    }
    OnDevice on(device);
    at::Tensor moved = at::detail::empty_strided_generic(
        result.sizes(), result.strides(), &device_memory(), kKeys, result.scalar_type());
    access(block_of(moved), true);
    if (result.numel() > 0) {
      as_cpu(moved).copy_(result);
    }
    return moved;
  };
  for (const auto& result : results) {
    if (result.isTensor()) {
      stack->emplace_back(to_device(result.toTensor()));
    } else if (result.isTensorList()) {
      std::vector<at::Tensor> list;
      for (const auto& tensor : result.toTensorVector()) {
        list.push_back(to_device(tensor));
      }
      stack->emplace_back(list);
    } else {
      stack->push_back(result);
    }
  }
}

}  // namespace
}  // namespace fake

TORCH_LIBRARY_IMPL(_, CUDA, m) {
  m.fallback(torch::CppFunction::makeFromBoxedFunction<&fake::run_on_cpu>());
}

TORCH_LIBRARY_IMPL(aten, CUDA, m) {
  // On a GPU these are one kernel each. Without a kernel of CUDA they would be one for each tensor.
  for (const char* name :
       {"_foreach_add_.Scalar", "_foreach_mul_.Tensor", "_foreach_norm.Scalar", "_foreach_sub_.List"}) {
    m.impl(name, torch::CppFunction::makeFromBoxedFunction<&fake::run_on_cpu>());
  }
  m.impl("empty.memory_format", fake::empty);
  m.impl("empty_strided", fake::empty_strided);
  m.impl("copy_", fake::copy_);
  m.impl("_copy_from_and_resize", fake::copy_from_and_resize);
  m.impl("_local_scalar_dense", fake::local_scalar_dense);
  m.impl("resize_", fake::resize_);
  m.impl("record_stream", fake::record_stream_of);
  m.impl("set_.source_Storage_storage_offset", fake::set_storage);
  m.impl("as_strided", at::native::as_strided_tensorimpl);
  m.impl("view", [](const at::Tensor& self, at::IntArrayRef size) { return at::native::view(self, size); });
  m.impl("_reshape_alias", at::native::_reshape_alias);
  m.impl("view_as_real", at::native::view_as_real);
  m.impl("view_as_complex", at::native::view_as_complex);
  m.impl("unfold", at::native::unfold);
}

#include <algorithm>

#include "millrace/model/lowering.h"

namespace millrace {
namespace {

constexpr uint8_t bit(ActivationForm form) { return static_cast<uint8_t>(form); }

}  // namespace

BufferId Lowering::buffer(const std::string& name, int64_t width, ActivationForms forms, bool output_rows, int64_t rows_per_token) {
  auto& buffers = program_.buffers;
  if (output_rows) forms.prompt = forms.fast;  // what comes of a row is multiplied in one way, whosever it is
  for (std::size_t i = 0; i < buffers.size(); ++i) {
    if (buffers[i].name != name || buffers[i].output_rows != output_rows || buffers[i].rows_per_token != rows_per_token) continue;
    buffers[i].width = std::max(buffers[i].width, width);
    buffers[i].forms = buffers[i].forms | forms;
    if (buffers[i].width == width) return static_cast<BufferId>(i);
  }
  // Layers of different widths (gemma 3n, pruned networks) get buffers of their own: activations are dense rows of one width.
  buffers.push_back({name, width, forms, output_rows, rows_per_token});
  return static_cast<BufferId>(buffers.size() - 1);
}

Op& Lowering::add(Op op) {
  op.layer = layer_;
  program_.ops.push_back(std::move(op));
  return program_.ops.back();
}

ActivationForms Lowering::forms_of(const Reader& reader) const {
  if (reader.exact) return kF32Only;
  const WeightClass weight_class = matrix(*reader.linear).weight_class();
  const GemmPath prompt_path = path_ == GemmPath::kFast ? GemmPath::kPrompt : path_;
  return {bit(activation_form(weight_class, isa_, path_)), bit(activation_form(weight_class, isa_, prompt_path))};
}

bool Lowering::same_columns(const std::vector<int32_t>* a, const std::vector<int32_t>* b) {
  return a == b || (a != nullptr && b != nullptr && *a == *b);
}

Lowering::Inputs Lowering::converted_input(BufferId in, const std::string& name, const std::vector<Reader>& readers) {
  Inputs inputs;
  int orders = 0;
  for (const Reader& reader : readers) {
    const std::vector<int32_t>* columns = matrix(*reader.linear).columns();
    const auto alike = [&](const auto& other) { return same_columns(columns, matrix(*other.linear).columns()); };
    if (const auto known = std::find_if(inputs.begin(), inputs.end(), alike); known != inputs.end()) {
      const BufferId shared = known->buffer;
      inputs.push_back({reader.linear, shared});
      continue;
    }
    ActivationForms forms;
    for (const Reader& other : readers) {
      if (alike(other)) forms = forms | forms_of(other);
    }
    ++orders;
    const Buffer from = program_.buffers[static_cast<std::size_t>(in)];
    const BufferId out =
        buffer(orders == 1 ? name : name + " in order " + std::to_string(orders), from.width, forms, from.output_rows, from.rows_per_token);
    add({.kind = OpKind::kConvert, .in = in, .out = out, .columns = columns});
    inputs.push_back({reader.linear, out});
  }
  return inputs;
}

Lowering::Inputs Lowering::expert_input(BufferId in, const std::string& name, const std::vector<std::vector<Reader>>& roles) {
  using Orders = std::vector<const std::vector<int32_t>*>;
  const auto orders_of = [&](const std::vector<Reader>& role) {
    Orders orders;
    for (const Reader& reader : role) orders.push_back(matrix(*reader.linear).columns());
    return orders;
  };
  const auto alike = [&](const Orders& a, const Orders& b) { return std::equal(a.begin(), a.end(), b.begin(), b.end(), same_columns); };
  Inputs inputs;
  std::vector<std::pair<Orders, BufferId>> made;
  for (const std::vector<Reader>& role : roles) {
    Orders orders = orders_of(role);
    auto known = std::find_if(made.begin(), made.end(), [&](const auto& other) { return alike(orders, other.first); });
    if (known == made.end()) {
      ActivationForms forms;
      for (const std::vector<Reader>& other : roles) {
        if (!alike(orders, orders_of(other))) continue;
        for (const Reader& reader : other) forms = forms | forms_of(reader);
      }
      const Buffer from = program_.buffers[static_cast<std::size_t>(in)];
      const BufferId out = buffer(made.empty() ? name : name + " in order " + std::to_string(made.size() + 1), from.width, forms, false,
                                  from.rows_per_token);
      const bool gathers = std::any_of(orders.begin(), orders.end(), [](const auto* columns) { return columns != nullptr; });
      add({.kind = OpKind::kConvert, .in = in, .out = out, .expert_columns = gathers ? orders : Orders()});
      made.emplace_back(std::move(orders), out);
      known = made.end() - 1;
    }
    for (const Reader& reader : role) inputs.push_back({reader.linear, known->second});
  }
  return inputs;
}

Lowering::Inputs Lowering::normed_input(const std::optional<Norm>& norm, BufferId in, const std::string& name,
                                        const std::vector<Reader>& readers, bool output_rows) {
  if (norm) {
    const BufferId temporary = output_rows ? buffer("normed", network_.hidden_size, kF32Only, true) : normed_;
    add({.kind = OpKind::kNorm, .in = in, .out = temporary, .norm = &*norm});
    in = temporary;
  }
  return converted_input(in, name, readers);
}

BufferId Lowering::input_of(const Inputs& inputs, const Linear& linear) {
  const auto input = std::find_if(inputs.begin(), inputs.end(), [&](const Input& candidate) { return candidate.linear == &linear; });
  MR_CHECK(input != inputs.end(), "every matrix has its input made first");
  return input->buffer;
}

void Lowering::add_linears(const Inputs& inputs, const std::vector<Placed>& linears, const Op& like) {
  std::vector<Op> ops;
  for (const Placed& placed : linears) {
    const BufferId in = input_of(inputs, *placed.linear);
    auto op = std::find_if(ops.begin(), ops.end(), [&](const Op& other) { return other.in == in; });
    if (op == ops.end()) {
      op = ops.insert(ops.end(), like);
      op->in = in;
    }
    op->segments.push_back(segment(*placed.linear, placed.column));
  }
  for (Op& op : ops) add(std::move(op));
}

Lowering::Inputs Lowering::exact_input(BufferId in, const std::string& name, const std::vector<const Linear*>& linears) {
  std::vector<Reader> readers;
  Inputs inputs;
  for (const Linear* linear : linears) {
    readers.push_back({linear, true});
    if (matrix(*linear).columns() == nullptr) inputs.push_back({linear, in});
  }
  return inputs.size() == linears.size() ? inputs : converted_input(in, name, readers);
}

}  // namespace millrace

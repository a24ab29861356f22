#pragma once

#include <ATen/core/dispatch/Dispatcher.h>
#include <ATen/core/ivalue.h>

#include <string>
#include <unordered_map>
#include <vector>

// For C++ programs that link the operator library: calls by name, without the
// long argument lists of the schemas.
namespace subquad {

// Calls torch.ops.subquad.<name>: positional arguments first, then arguments by
// name, and the schema's defaults for the rest. Autograd and autocast apply as
// they do from Python. Throws c10::Error for an operator or an argument that is
// not there, and what the operator itself throws.
inline std::vector<c10::IValue> call(
    const std::string& name,
    std::vector<c10::IValue> positional,
    std::unordered_map<std::string, c10::IValue> named = {}) {
  const auto op = c10::Dispatcher::singleton().findSchemaOrThrow(
      ("subquad::" + name).c_str(), "");
  const auto& arguments = op.schema().arguments();
  TORCH_CHECK_VALUE(
      positional.size() <= arguments.size(),
      name,
      ": at most ",
      arguments.size(),
      " arguments, got ",
      positional.size());
  std::vector<c10::IValue> stack = std::move(positional);
  for (size_t i = stack.size(); i < arguments.size(); ++i) {
    const auto given = named.find(arguments[i].name());
    if (given != named.end()) {
      stack.push_back(std::move(given->second));
      named.erase(given);
      continue;
    }
    TORCH_CHECK_VALUE(
        arguments[i].default_value().has_value() ||
            arguments[i].type()->kind() == c10::TypeKind::OptionalType,
        name,
        ": argument ",
        arguments[i].name(),
        " is missing");
    stack.push_back(arguments[i].default_value().value_or(c10::IValue()));
  }
  TORCH_CHECK_VALUE(
      named.empty(),
      name,
      ": no such argument, or given twice: ",
      named.begin()->first);
  op.callBoxed(&stack);
  return stack;
}

} // namespace subquad

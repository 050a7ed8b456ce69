// The ways in which a runner ends early. Messages finish the sentence: what, where, what to do.
#pragma once

#include <stdexcept>
#include <string>
#include <utility>

#include "printable.hpp"

namespace edgediff {

/// Something that the caller can put right: exit status 2. One line, whatever the message quotes.
struct BadInput : std::runtime_error {
  explicit BadInput(const std::string& message) : std::runtime_error(printable(message)) {}
};

/// What docs/format.md has a code for (section 9): exit status 2, the code printed before the sentence.
struct Refused : BadInput {
  std::string code;

  Refused(std::string under, const std::string& message) : BadInput(message), code(std::move(under)) {}
};

/// A graph that cannot be loaded or run, or values that are not numbers: exit status 1.
struct Failed : std::runtime_error {
  using std::runtime_error::runtime_error;
};

}  // namespace edgediff

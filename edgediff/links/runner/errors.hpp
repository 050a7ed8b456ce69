// The two ways in which the runner ends early. Messages finish the sentence: what, where, what to do.
#pragma once

#include <stdexcept>

namespace edgediff {

/// Something that the caller can put right: exit status 2.
struct BadInput : std::runtime_error {
  using std::runtime_error::runtime_error;
};

/// A graph that cannot be loaded or run, or values that are not numbers: exit status 1.
struct Failed : std::runtime_error {
  using std::runtime_error::runtime_error;
};

}  // namespace edgediff

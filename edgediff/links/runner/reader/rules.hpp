// What must hold between the keys of a manifest: section 7 of docs/format.md, rule by rule, in its order.
#pragma once

#include "manifest.hpp"

namespace edgediff {

/// Throws Refused under the code of the first rule that is broken.
void check_rules(const Manifest& manifest);

}  // namespace edgediff

// The tables of section 5 of docs/format.md.
#pragma once

#include "manifest.hpp"

namespace edgediff::tables {

/// Throws Refused `unknown_key`, `value` or `path` for the first key that its table does not have so.
Manifest read_manifest(const json::Value& value);

}  // namespace edgediff::tables

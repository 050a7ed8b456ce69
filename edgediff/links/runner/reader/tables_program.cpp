#include "tables_program.hpp"

namespace edgediff::tables {
namespace {

using fields::Fields;
using fields::list_of;
using fields::map_of;
using fields::name;
using fields::number;
using fields::number_in;
using fields::refuse;
using fields::Where;
using fields::whole;
using fields::word;
using json::Value;

constexpr std::int64_t kLargestLatent = 1 << 24;

Takes read_takes(const Value& value, const Where& where) {
  return word<Takes>(value, where,
                     {{"prompt", Takes::prompt},
                      {"negative_prompt", Takes::negative_prompt},
                      {"picture", Takes::picture},
                      {"mask", Takes::mask}});
}

double read_strength(const Value& value, const Where& where) { return number_in(value, where, 0, 1, true); }

double read_limit(const Value& value, const Where& where) { return number_in(value, where, 0, 1e30, true); }

double read_bounded(const Value& value, const Where& where) { return number_in(value, where, 0, 1000); }

Shape read_latent(const Value& value, const Where& where) {
  const auto sizes = list_of(whole(1, 1 << 16), 2, 3)(value, where);
  std::int64_t elements = 1;
  for (const std::int64_t size : sizes) elements *= size;
  if (elements > kLargestLatent) refuse("value", where, "a latent has at most 2^24 elements");
  return Shape(sizes.begin(), sizes.end());
}

Init read_init(const Value& value, const Where& where) {
  Fields from(value, where);
  Init init;
  init.noise = from.need("noise", number);
  init.picture = from.get_or("picture", 0, number);
  from.done();
  return init;
}

bool read_mode(const Value& value, const Where& where) {
  return word<bool>(value, where, {{"batched", true}, {"sequential", false}});
}

Scale read_scale(const Value& value, const Where& where) {
  Fields from(value, where);
  Scale scale{};
  scale.scale = from.need("scale", read_bounded);
  scale.low = from.need("low", read_bounded);
  scale.high = from.need("high", read_bounded);
  from.done();
  return scale;
}

Clip read_clip(const Value& value, const Where& where) {
  Fields from(value, where);
  Clip clip{};
  clip.x = from.need("x", number);
  clip.e = from.need("e", number);
  clip.limit = from.need("limit", read_limit);
  clip.weight = from.need("weight", number);
  from.done();
  return clip;
}

Update read_update(const Value& value, const Where& where) {
  Fields from(value, where);
  Update update;
  update.x = from.need("x", list_of(number, 0, 64));
  update.e = from.need("e", list_of(number, 0, 64));
  update.noise = from.get_or("noise", 0, number);
  update.clip = from.maybe("clip", read_clip);
  from.done();
  return update;
}

Guidance read_guidance(const Value& value, const Where& where) {
  if (value.text() != nullptr) return word<Guidance>(value, where, {{"scale", Guidance{}}});
  return {number(value, where)};
}

bool read_times(const Value& value, const Where& where) {
  return word<bool>(value, where, {{"one", false}, {"scale_minus_one", true}});
}

Held read_held(const Value& value, const Where& where) {
  Fields from(value, where);
  Held held;
  held.weights = from.need("weights", list_of(number, 1, 64));
  held.times_scale_minus_one = from.get_or("times", false, read_times);
  from.done();
  return held;
}

Blend read_blend(const Value& value, const Where& where) {
  Fields from(value, where);
  Blend blend{};
  blend.picture = from.need("picture", number);
  blend.noise = from.need("noise", number);
  from.done();
  return blend;
}

Row read_row(const Value& value, const Where& where) {
  Fields from(value, where);
  Row row;
  row.timestep = from.need("timestep", number);
  row.input_scale = from.get_or("input_scale", 1, number);
  row.update = from.need("update", read_update);
  row.graph = from.maybe("graph", name);
  row.guidance = from.maybe("guidance", read_guidance);
  row.held = from.maybe("held", read_held);
  row.mix = from.get_or("mix", {}, map_of(list_of(number, 1, 64), 0, 512));
  row.blend = from.maybe("blend", read_blend);
  from.done();
  return row;
}

}  // namespace

Program read_program(const Value& value, const Where& where) {
  Fields from(value, where);
  Program program;
  program.takes = from.get_or("takes", {}, list_of(read_takes, 0, 4));
  program.strength = from.maybe("strength", read_strength);
  program.latent = from.need("latent", read_latent);
  program.init = from.need("init", read_init);
  from.need("sampler", fields::short_text(0));
  from.need("steps", whole(1, 10'000));
  program.batched = from.need("mode", read_mode);
  program.guidance = from.maybe("guidance", read_scale);
  program.embedded_guidance = from.maybe("embedded_guidance", read_scale);
  program.rows = from.need("rows", list_of(read_row, 1, 10'000));
  from.done();
  return program;
}

}  // namespace edgediff::tables

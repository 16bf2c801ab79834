// Exports its name, by Node-API.

#include <node_api.h>

NAPI_MODULE_INIT() {
  napi_value name;
  if (napi_create_string_utf8(env, "node-api", NAPI_AUTO_LENGTH, &name) != napi_ok ||
      napi_set_named_property(env, exports, "name", name) != napi_ok)
    return NULL;
  return exports;
}

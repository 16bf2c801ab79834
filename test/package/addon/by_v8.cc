// Exports its name, by V8's own interface, which is another one with each version.

#include <node.h>

NODE_MODULE_INIT() {
  v8::Isolate* isolate = v8::Isolate::GetCurrent();
  v8::Local<v8::String> key = v8::String::NewFromUtf8Literal(isolate, "name");
  exports->Set(context, key, v8::String::NewFromUtf8Literal(isolate, "v8")).Check();
}

// A scheduler's step that follows its last, without what finding its way costs: whether it is that one, asked
// of a dozen objects in a microsecond, and the kernel between tensors made for it.
// fastdiff/diffusers/short.py.
#pragma once

#include "stepper.h"

namespace fastdiff {

enum class Row : char { kPlain = 0, kDraws = 1, kLong = 2 };

// Names of attributes of runs and their parts, of what a loop remembers, and of arguments.
struct LoopNames {
    PyObject* next = PyUnicode_InternFromString("next");
    PyObject* place = PyUnicode_InternFromString("place");
    PyObject* first = PyUnicode_InternFromString("first");
    PyObject* stride = PyUnicode_InternFromString("stride");
    PyObject* fresh = PyUnicode_InternFromString("fresh");
    PyObject* returned = PyUnicode_InternFromString("returned");
    PyObject* version = PyUnicode_InternFromString("version");
    PyObject* state = PyUnicode_InternFromString("state");
    PyObject* ring = PyUnicode_InternFromString("ring");
    PyObject* make_ring = PyUnicode_InternFromString("make_ring");
    PyObject* samples = PyUnicode_InternFromString("samples");
    PyObject* moved = PyUnicode_InternFromString("moved");
    PyObject* memory = PyUnicode_InternFromString("memory");
    PyObject* versions = PyUnicode_InternFromString("versions");
    PyObject* tensor_version = PyUnicode_InternFromString("_version");
    PyObject* memo = PyUnicode_InternFromString("_memo");
    PyObject* plain = PyUnicode_InternFromString("_plain");
    PyObject* step_index = PyUnicode_InternFromString("_step_index");
    PyObject* begin_index = PyUnicode_InternFromString("_begin_index");
    PyObject* generator = PyUnicode_InternFromString("generator");
    PyObject* return_dict = PyUnicode_InternFromString("return_dict");
    PyObject* dtype_only = PyTuple_Pack(1, PyUnicode_InternFromString("dtype"));
};

inline const LoopNames& loop_names() {
    static const LoopNames all;
    return all;
}

struct Way {
    py::object take;  // the stepper of state `stepper`
    const Stepper* stepper;
    py::object output_dtype, result_dtype;
    py::object options;      // step()'s arguments but for generator and return_dict
    py::object return_dict;  // its default
    py::object usual;        // () -> whether the kernel may be called at all
    py::object empty_like;
    std::string rows;   // a Row each
    std::string backs;  // how many samples back each row's anchor lies, 0 for none
    int64_t begin;      // the step of the first row
    bool counted;       // whether _step_index must fit
    bool generator;     // whether step() takes one
    bool ring;          // whether values are kept
    bool wide;          // whether there is a state of higher precision behind the sample
    bool reuses;        // whether that may be written over
};

inline py::object attribute(PyObject* of, PyObject* name) {
    return py::reinterpret_steal<py::object>(PyObject_GetAttr(of, name));
}

// An integer attribute, or -1.
inline int64_t number(PyObject* of, PyObject* name) {
    const py::object found = attribute(of, name);
    return found && PyLong_CheckExact(found.ptr()) ? PyLong_AsLongLong(found.ptr()) : -1;
}

// An integer of a loop's memory; -1 if there is none.
inline int64_t remembered(PyObject* seen, PyObject* name) {
    PyObject* found = PyDict_GetItemWithError(seen, name);
    return found && PyLong_CheckExact(found) ? PyLong_AsLongLong(found) : -1;
}

// Whether nobody wrote into these: a tuple of (tensor, its version).
inline bool untouched(PyObject* versions) {
    if (!versions || !PyTuple_CheckExact(versions)) return false;
    for (Py_ssize_t i = 0; i < PyTuple_GET_SIZE(versions); ++i) {
        PyObject* pair = PyTuple_GET_ITEM(versions, i);
        const int64_t version = number(PyTuple_GET_ITEM(pair, 0), loop_names().tensor_version);
        if (version != PyLong_AsLongLong(PyTuple_GET_ITEM(pair, 1))) return false;
    }
    return true;
}

inline bool is_simple(PyObject* value) {
    return value == Py_None || PyBool_Check(value) || PyLong_CheckExact(value) || PyFloat_CheckExact(value) ||
           PyUnicode_CheckExact(value);
}

// step()'s further arguments, if they are those of the steps before; else generator is null.
struct Arguments {
    PyObject* generator = nullptr;
    PyObject* return_dict = nullptr;
};

inline Arguments arguments_of(const Way& way, PyObject* given) {
    const LoopNames& n = loop_names();
    Arguments found{Py_None, way.return_dict.ptr()};
    PyObject *name, *value;
    Py_ssize_t at = 0, others = 0;
    while (PyDict_Next(given, &at, &name, &value)) {
        if (PyUnicode_Compare(name, n.return_dict) == 0) {
            found.return_dict = value;
        } else if (way.generator && PyUnicode_Compare(name, n.generator) == 0) {
            found.generator = value;
        } else {
            PyObject* usual = PyDict_GetItemWithError(way.options.ptr(), name);
            if (!usual || !is_simple(value) || PyObject_RichCompareBool(usual, value, Py_EQ) != 1) return {};
            ++others;
        }
    }
    return others == PyDict_GET_SIZE(way.options.ptr()) ? found : Arguments{};
}

// Whether the loop is where it was: nothing was set since, and diffusers' own step has not taken over.
inline bool undisturbed(PyObject* seen, PyObject* run) {
    const LoopNames& n = loop_names();
    PyObject* plain = PyDict_GetItemWithError(seen, n.plain);
    if (plain && plain != Py_None) return false;
    const py::object known = attribute(run, n.memory);
    if (!known || known.is_none() || PyDict_GetItemWithError(seen, n.memo) != known.ptr()) return false;
    return untouched(attribute(known.ptr(), n.versions).ptr());
}

// Whether `sample` is what the last step returned, or the loop is about to begin.
inline bool goes_on(const Way& way, PyObject* seen, PyObject* run, int64_t next, PyObject* sample) {
    const LoopNames& n = loop_names();
    const int64_t counted = way.counted ? remembered(seen, n.step_index) : next;
    if (attribute(run, n.fresh).ptr() == Py_True)
        return (counted == -1 || counted == next) && remembered(seen, n.begin_index) <= 0 &&
               image(*way.stepper, sample);
    return counted == next && attribute(run, n.returned).ptr() == sample &&
           number(sample, n.tensor_version) == number(run, n.version);
}

inline bool at_place(const Way& way, PyObject* run, PyObject* timestep) {
    const LoopNames& n = loop_names();
    const int64_t place = number(run, n.place);
    if (place < 0 || reinterpret_cast<PyObject*>(Py_TYPE(timestep)) != way.stepper->tensor_type.ptr())
        return false;
    return reinterpret_cast<int64_t>(memory(timestep)) ==
           number(run, n.first) + place * number(run, n.stride);
}

inline bool output_fits(const Way& way, PyObject* output, Row row) {
    const Stepper& s = *way.stepper;
    if (reinterpret_cast<PyObject*>(Py_TYPE(output)) != s.tensor_type.ptr()) return false;
    if (!is(output, names().dtype, way.output_dtype.ptr())) return false;
    if (row != Row::kDraws) return true;
    return is(output, names().requires_grad, Py_False) &&
           equals(PyObject_GetAttr(output, names().shape), s.shape);
}

// What a step works on besides what it makes; null where it is not there.
struct Kept {
    py::object x, ring, anchor;
};

inline Kept kept_by(const Way& way, PyObject* run, int64_t row, PyObject* sample) {
    const LoopNames& n = loop_names();
    Kept kept{py::none(), py::none(), py::none()};
    if (way.wide) kept.x = attribute(run, n.state);
    if (kept.x && kept.x.is_none()) kept.x = py::reinterpret_borrow<py::object>(sample);
    if (way.ring) kept.ring = attribute(run, n.ring);
    if (kept.ring && way.ring && kept.ring.is_none()) {
        const bool fresh = attribute(run, n.fresh).ptr() == Py_True;
        kept.ring = py::reinterpret_steal<py::object>(
            fresh ? PyObject_CallMethodOneArg(run, n.make_ring, sample) : nullptr);
    }
    const int64_t back = way.backs[row];
    const py::object samples = back ? attribute(run, n.samples) : py::object();
    if (back) {
        const bool there =
            samples && PyList_CheckExact(samples.ptr()) && PyList_GET_SIZE(samples.ptr()) >= back;
        kept.anchor =
            py::reinterpret_borrow<py::object>(there ? PyList_GET_ITEM(samples.ptr(), back - 1) : nullptr);
    }
    return kept;
}

// Takes a step. The next sample; null where the kernel must be called another way, nothing done, or, with an
// error set, of what Python does meanwhile (signals).
inline py::object taken(
    const Way& way, PyObject* run, int64_t row, PyObject* output, PyObject* sample, PyObject* noise) {
    const LoopNames& n = loop_names();
    const Kept kept = kept_by(way, run, row, sample);
    if (!kept.x || !kept.ring || !kept.anchor) return {};
    PyObject* x = kept.x.ptr();
    const bool apart = x != sample;
    const auto like = [&](PyObject* dtype) {
        PyObject* args[] = {x, dtype};
        return py::reinterpret_steal<py::object>(
            PyObject_Vectorcall(way.empty_like.ptr(), args, 1, dtype ? n.dtype_only : nullptr));
    };
    const py::object following = apart && way.reuses ? kept.x : like(nullptr);
    const py::object rounded = way.result_dtype.is_none() ? py::none() : like(way.result_dtype.ptr());
    const py::object index = py::reinterpret_steal<py::object>(PyLong_FromLongLong(row));
    if (!following || !rounded || !index) return {};
    PyObject* args[] = {index.ptr(),      output, Py_None,         noise,         Py_None,
                        Py_None,          x,      following.ptr(), rounded.ptr(), kept.ring.ptr(),
                        kept.anchor.ptr()};
    const auto made = py::reinterpret_steal<py::object>(step(PyCFunction_GET_SELF(way.take.ptr()), args, 11));
    if (!made || !made.is_none()) return {};
    PyObject* moved[] = {run, x, following.ptr(), rounded.ptr(), noise};
    return py::reinterpret_steal<py::object>(PyObject_VectorcallMethod(n.moved, moved, 5, nullptr));
}

// The arguments of the step that follows, if this is it and the short way leads there.
inline Arguments expected(const Way& way, PyObject* const* args, int64_t* row) {
    PyObject *seen = args[0], *run = args[1], *sample = args[4];
    if (!PyDict_CheckExact(seen) || !PyDict_CheckExact(args[5])) return {};
    const int64_t next = number(run, loop_names().next);
    *row = next - way.begin;
    if (*row < 0 || *row >= static_cast<int64_t>(way.rows.size())) return {};
    const Row kind = static_cast<Row>(way.rows[*row]);
    const bool goes = kind != Row::kLong && goes_on(way, seen, run, next, sample) &&
                      at_place(way, run, args[3]) && output_fits(way, args[2], kind) &&
                      undisturbed(seen, run);
    return goes ? arguments_of(way, args[5]) : Arguments{};
}

// follow(seen, run, output, timestep, sample, arguments) -> (row, generator, return_dict, the next sample or
// None for a row that draws noise first), or None where this is not the step that follows, or not for this
// way.
inline PyObject* follow(PyObject* self, PyObject* const* args, Py_ssize_t count) {
    const Way& way = *static_cast<Way*>(PyCapsule_GetPointer(self, nullptr));
    int64_t row = -1;
    const Arguments found = count == 6 ? expected(way, args, &row) : Arguments{};
    PyErr_Clear();  // of what was asked of something that is not of the kind expected
    if (!found.generator) Py_RETURN_NONE;
    const auto usual = py::reinterpret_steal<py::object>(PyObject_CallNoArgs(way.usual.ptr()));
    if (!usual) return nullptr;
    if (usual.ptr() != Py_True) Py_RETURN_NONE;
    py::object returned = py::none();
    if (static_cast<Row>(way.rows[row]) == Row::kPlain)
        returned = taken(way, args[1], row, args[2], args[4], Py_None);
    if (returned) return Py_BuildValue("(LOOO)", row, found.generator, found.return_dict, returned.ptr());
    if (PyErr_Occurred()) return nullptr;
    Py_RETURN_NONE;
}

// take(run, row, output, sample, noise) -> the next sample, or None: nothing was done.
inline PyObject* take(PyObject* self, PyObject* const* args, Py_ssize_t count) {
    const Way& way = *static_cast<Way*>(PyCapsule_GetPointer(self, nullptr));
    const int64_t row = count == 5 ? PyLong_AsLongLong(args[1]) : -1;
    const bool within = row >= 0 && row < static_cast<int64_t>(way.rows.size());
    py::object made = within ? taken(way, args[0], row, args[2], args[3], args[4]) : py::object();
    if (made) return made.release().ptr();
    if (PyErr_Occurred()) return nullptr;
    Py_RETURN_NONE;
}

// (follow, take), by what `what` names like the fields of Way.
inline py::tuple make_way(const py::dict& what) {
    const auto flag = [&](const char* name) { return what[name].cast<bool>(); };
    const py::object stepper = what["take"];
    const auto* state =
        static_cast<Stepper*>(PyCapsule_GetPointer(PyCFunction_GET_SELF(stepper.ptr()), nullptr));
    const auto made = [&] {
        return new Way{
            stepper,
            state,
            what["output_dtype"],
            what["result_dtype"],
            what["options"],
            what["return_dict"],
            what["usual"],
            what["empty_like"],
            what["rows"].cast<std::string>(),
            what["backs"].cast<std::string>(),
            what["begin"].cast<int64_t>(),
            flag("counted"),
            flag("generator"),
            flag("ring"),
            flag("wide"),
            flag("reuses")};
    };
    static PyMethodDef follows = {
        "follow", reinterpret_cast<PyCFunction>(reinterpret_cast<void (*)()>(&follow)), METH_FASTCALL,
        "follow(seen, run, output, timestep, sample, arguments, /)"};
    static PyMethodDef takes = {
        "take", reinterpret_cast<PyCFunction>(reinterpret_cast<void (*)()>(&take)), METH_FASTCALL,
        "take(run, row, output, sample, noise, /)"};
    return py::make_tuple(bound_to(&follows, made()), bound_to(&takes, made()));
}

}  // namespace fastdiff

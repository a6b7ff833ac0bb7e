// Takes a scheduler's step: the kernel between tensors made for it, the noise it reads, what is noted of it
// and what step() returns.
#pragma once

#include "scratch.h"
#include "way.h"

namespace fastdiff {

// What a step works on besides what it makes; null where it is not there.
struct Kept {
    py::object x, ring, anchor;
};

inline Kept kept_by(const Step& at) {
    const LoopNames& n = loop_names();
    const Way& way = at.way;
    PyObject *run = at.run, *sample = at.sample;
    Kept kept{py::none(), py::none(), py::none()};
    if (way.wide)
        kept.x =
            way.seen[at.row] ? steal(PyObject_CallMethodNoArgs(sample, n.to_float)) : attribute(run, n.state);
    if (kept.x && kept.x.is_none()) kept.x = py::reinterpret_borrow<py::object>(sample);
    if (way.ring) kept.ring = attribute(run, n.ring);
    if (way.ring && kept.ring && kept.ring.is_none()) {
        const bool fresh = attribute(run, n.fresh).ptr() == Py_True;
        kept.ring = steal(fresh ? PyObject_CallMethodOneArg(run, n.make_ring, sample) : nullptr);
    }
    const int64_t back = way.backs[at.row];
    const py::object samples = back ? attribute(run, n.samples) : py::object();
    if (back) {
        const bool there =
            samples && PyList_CheckExact(samples.ptr()) && PyList_GET_SIZE(samples.ptr()) >= back;
        kept.anchor =
            py::reinterpret_borrow<py::object>(there ? PyList_GET_ITEM(samples.ptr(), back - 1) : nullptr);
    }
    return kept;
}

// The kernel's row: what is read, looked at before anything is done. False where it does not fit.
inline bool reads(const Step& at, const Kept& kept, FastdiffRow& row) {
    const Stepper& s = *at.way.stepper;
    row.row = at.row;
    row.source = kept.x && kept.ring && kept.anchor ? image(s, kept.x.ptr()) : nullptr;
    if (!row.source || !outputs_fit(s, at.output, Py_None, row)) return false;
    if (!kept.anchor.is_none() && !(row.anchor = image(s, kept.anchor.ptr()))) return false;
    if (!kept.ring.is_none()) row.history = static_cast<float*>(memory(kept.ring.ptr()));
    return kept.ring.is_none() || row.history;
}

// The noise of a step: drawn into `scratch`, or as a tensor, or none. False with an error set.
inline bool drawn(
    const Step& at, PyObject* generator, const Scratch& scratch, FastdiffRow& row, py::object& noise) {
    const Way& way = at.way;
    if (scratch.get()) {
        const py::object there = steal(PyLong_FromVoidPtr(scratch.get()));
        const py::object count = integer(way.stepper->run.numel);
        PyObject* args[] = {there.ptr(), count.ptr(), way.draw_dtype.ptr(), generator};
        const auto made = steal(PyObject_Vectorcall(way.into.ptr(), args, 4, nullptr));
        if (!made) return false;
        row.noise = made.ptr() == Py_True ? scratch.get() : nullptr;
        row.noise_type = way.draw_type;
        if (row.noise) return true;
    }
    PyObject* args[] = {at.scheduler, PyTuple_GET_ITEM(way.lines.ptr(), at.row), at.sample, generator};
    noise = steal(PyObject_Vectorcall(way.noise.ptr(), args, 4, nullptr));
    return static_cast<bool>(noise);
}

// Notes that a step was taken, as Run.moved does; rows at which more than this changes call that.
inline py::object moved(
    const Step& at, PyObject* x, PyObject* following, PyObject* rounded, PyObject* noise) {
    const LoopNames& n = loop_names();
    const bool last = at.row + 1 == static_cast<int64_t>(at.way.rows.size());
    if (last || at.way.reach) {
        PyObject* args[] = {at.run, x, following, rounded, noise};
        return steal(PyObject_VectorcallMethod(n.moved, args, 5, nullptr));
    }
    PyObject* returned = rounded == Py_None ? following : rounded;
    const py::object version = attribute(returned, n.tensor_version);
    const py::object next = integer(at.way.begin + at.row + 1), place = integer(number(at.run, n.place) + 1);
    const auto set = [&](PyObject* name, PyObject* value) {
        return PyObject_SetAttr(at.run, name, value) == 0;
    };
    const bool noted = version && next && place && set(n.state, rounded == Py_None ? Py_None : following) &&
                       set(n.noise, Py_None) && set(n.returned, returned) && set(n.version, version.ptr()) &&
                       set(n.next, next.ptr()) && set(n.fresh, Py_False) && set(n.place, place.ptr());
    return noted ? py::reinterpret_borrow<py::object>(returned) : py::object();
}

// The scheduler's own count of its steps, and the run that it is in.
inline bool counted(const Step& at) {
    const LoopNames& n = loop_names();
    const int64_t row = at.row + 1;
    const auto next = integer(at.way.counted ? at.way.begin + row : row);
    if (!next) return false;
    if (at.way.counted) {
        const py::object own = attribute(at.scheduler, n.attributes);
        if (!own || PyDict_SetItem(at.seen, n.step_index, next.ptr()) ||
            PyDict_SetItem(own.ptr(), n.step_index, next.ptr()))
            return false;
    } else if (!at.way.counts.is_none() && PyObject_SetAttr(at.scheduler, at.way.counts.ptr(), next.ptr())) {
        return false;
    }
    return PyDict_GetItemWithError(at.seen, n.run) == at.run ||
           PyObject_SetAttr(at.scheduler, n.run, at.run) == 0;
}

// results.LazyTuple of a step without noise to show; null without an error where a version is not to be had.
inline py::object lazily(const Step& at, PyObject* line, PyObject* extras, PyObject* returned) {
    const LoopNames& n = loop_names();
    const py::object given = attribute(at.given, n.tensor_version),
                     sample = attribute(at.sample, n.tensor_version);
    PyErr_Clear();
    if (!given || !sample) return {};
    const Py_ssize_t count = PyTuple_GET_SIZE(extras);
    const py::object values = steal(PyTuple_New(1 + count));
    if (!values) return {};
    PyTuple_SET_ITEM(values.ptr(), 0, Py_NewRef(returned));
    for (Py_ssize_t i = 0; i < count; ++i)
        PyTuple_SET_ITEM(values.ptr(), 1 + i, Py_NewRef(PyTuple_GET_ITEM(extras, i)));
    const py::object images = steal(PyTuple_Pack(4, at.given, at.sample, Py_None, Py_None));
    const py::object versions = steal(PyTuple_Pack(2, given.ptr(), sample.ptr()));
    if (!images || !versions) return {};
    const py::object source = steal(PyTuple_Pack(4, line, images.ptr(), Py_None, at.way.extra_dtype.ptr()));
    py::object made = source ? steal(PyObject_CallOneArg(at.way.lazy.ptr(), values.ptr())) : py::object();
    if (!made || PyObject_SetAttr(made.ptr(), n.source, source.ptr()) ||
        PyObject_SetAttr(made.ptr(), n.lazy_versions, versions.ptr()))
        return {};
    return made;
}

// What step() returns.
inline py::object result(const Step& at, PyObject* returned, PyObject* noise, PyObject* return_dict) {
    PyObject* line = PyTuple_GET_ITEM(at.way.lines.ptr(), at.row);
    const py::object extras = attribute(line, loop_names().extras);
    if (!extras) return {};
    if (return_dict == Py_False) {
        if (PyTuple_GET_SIZE(extras.ptr()) == 0) return steal(PyTuple_Pack(1, returned));
        py::object made = noise == Py_None ? lazily(at, line, extras.ptr(), returned) : py::object();
        if (made || PyErr_Occurred()) return made;
    }
    const py::object images = steal(PyTuple_Pack(4, at.given, at.sample, noise, Py_None));
    if (!images) return {};
    PyObject* args[] = {at.scheduler, line, returned, images.ptr(), return_dict};
    return steal(PyObject_Vectorcall(at.way.finish.ptr(), args, 5, nullptr));
}

// Takes a step. What it returns; null where it must be taken another way, nothing done, or, with an error
// set, of what Python does meanwhile (signals).
inline py::object taken(const Step& at, PyObject* generator, PyObject* return_dict) {
    const LoopNames& n = loop_names();
    const Way& way = at.way;
    const Row kind = static_cast<Row>(way.rows[at.row]);
    const Kept kept = kept_by(at);
    FastdiffRow row = {};
    if (!reads(at, kept, row)) return PyErr_Clear(), py::object();
    PyObject* x = kept.x.ptr();
    const auto like = [&](PyObject* dtype) {
        PyObject* args[] = {x, dtype};
        return steal(PyObject_Vectorcall(way.empty_like.ptr(), args, 1, dtype ? n.dtype_only : nullptr));
    };
    const Scratch scratch(kind == Row::kDraws ? way.stepper->run.numel * (way.draw_type ? 2 : 4) : 0);
    py::object noise = py::none();
    if (kind != Row::kPlain && !drawn(at, generator, scratch, row, noise)) return {};
    const py::object following = x != at.sample && way.reuses ? kept.x : like(nullptr);
    const py::object rounded = way.result_dtype.is_none() ? py::none() : like(way.result_dtype.ptr());
    if (!following || !rounded) return {};
    row.x = static_cast<float*>(memory(following.ptr()));
    row.input = rounded.is_none() ? nullptr : memory(rounded.ptr());
    py::object returned;
    if (noise_fits(*way.stepper, noise.ptr(), row) && ran(*way.stepper, row)) {
        returned = moved(at, x, following.ptr(), rounded.ptr(), noise.ptr());
    } else if (kind != Row::kPlain) {  // its noise is spent
        PyErr_Clear();
        PyObject* args[] = {at.run, at.given, at.sample, noise.ptr()};
        returned = steal(PyObject_Vectorcall(way.rest.ptr(), args, 4, nullptr));
    }
    return returned && counted(at) ? result(at, returned.ptr(), noise.ptr(), return_dict) : py::object();
}

}  // namespace fastdiff

//! The interpreter against the conformance suite of `posada-vcpu`: one test for each behaviour.

use posada_vcpu::{Connections, Vcpu};
use posada_x86::{Interpreter, Model};

fn interpreter(connections: Connections) -> Box<dyn Vcpu> {
    let model = Model::named("x86-64-v2").expect("a listed model exists");
    Box::new(Interpreter::new(connections, model).expect("an interpreter takes any connections"))
}

posada_vcpu::conformance_tests!(crate::interpreter);

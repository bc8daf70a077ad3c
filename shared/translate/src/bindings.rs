//! Names in Python code. Input: parsed statements. Output: what a module binds them to, and what a function uses.

use std::collections::{BTreeMap, BTreeSet};

use ruff_python_ast::visitor::{self, Visitor};
use ruff_python_ast::{Expr, ExprContext, Parameter, Stmt, StmtFunctionDef};

/// What the module's own names stand for.
#[derive(Default)]
pub(crate) struct Bindings {
    /// The line of a function's last definition, which is the one that counts in Python.
    pub functions: BTreeMap<String, usize>,
    /// Names that are not functions, with the line that binds them.
    pub others: BTreeMap<String, usize>,
}

impl Bindings {
    /// The bindings of statements with their lines.
    pub fn of<'s>(statements: impl Iterator<Item = (&'s Stmt, usize)>) -> Self {
        let mut bindings = Self::default();
        for (statement, line) in statements {
            bindings.add(statement, line);
        }
        bindings
    }

    fn add(&mut self, statement: &Stmt, line: usize) {
        match statement {
            Stmt::FunctionDef(function) => {
                self.functions.insert(function.name.to_string(), line);
            }
            Stmt::ClassDef(class) => {
                self.others.insert(class.name.to_string(), line);
            }
            Stmt::Import(import) => {
                let names = import.names.iter().map(|alias| match &alias.asname {
                    Some(name) => name.to_string(),
                    None => alias.name.split('.').next().unwrap_or_default().to_owned(),
                });
                self.others.extend(names.map(|name| (name, line)));
            }
            Stmt::ImportFrom(import) => {
                let names = import.names.iter();
                let names = names.map(|alias| alias.asname.as_ref().unwrap_or(&alias.name).to_string());
                self.others.extend(names.map(|name| (name, line)));
            }
            other => {
                let mut names = Names::default();
                names.visit_stmt(other);
                self.others.extend(names.bound.into_iter().map(|name| (name, line)));
            }
        }
    }
}

/// The names in a piece of code.
#[derive(Default)]
pub(crate) struct Names {
    pub used: BTreeSet<String>,
    pub bound: BTreeSet<String>,
    /// Names of the module that it changes.
    pub globals: BTreeSet<String>,
    pub yields: bool,
}

impl Names {
    /// The names in a function.
    pub fn of(function: &StmtFunctionDef) -> Self {
        let mut names = Self::default();
        function.body.iter().for_each(|part| names.visit_stmt(part));
        let parameters = function.parameters.iter();
        names
            .bound
            .extend(parameters.map(|parameter| parameter.name().to_string()));
        names
    }
}

impl<'a> Visitor<'a> for Names {
    fn visit_annotation(&mut self, _: &'a Expr) {
        // Types become Rust types: what they are called in Python is not needed.
    }

    fn visit_parameter(&mut self, parameter: &'a Parameter) {
        self.bound.insert(parameter.name.to_string());
    }

    fn visit_stmt(&mut self, statement: &'a Stmt) {
        match statement {
            Stmt::FunctionDef(function) => {
                self.bound.insert(function.name.to_string());
            }
            Stmt::Global(global) => self.globals.extend(global.names.iter().map(ToString::to_string)),
            _ => {}
        }
        visitor::walk_stmt(self, statement);
    }

    fn visit_expr(&mut self, expression: &'a Expr) {
        match expression {
            Expr::Name(name) if name.ctx == ExprContext::Load => {
                self.used.insert(name.id.to_string());
            }
            Expr::Name(name) => {
                self.bound.insert(name.id.to_string());
            }
            Expr::Yield(_) | Expr::YieldFrom(_) => self.yields = true,
            _ => {}
        }
        visitor::walk_expr(self, expression);
    }
}

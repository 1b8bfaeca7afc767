//! The attributes of the crate `procession`, which re-exports them and shows them in use.

use proc_macro::TokenStream;
use quote::{format_ident, quote};
use syn::spanned::Spanned;
use syn::{Error, FnArg, ItemFn, Result, ReturnType, Type, parse_macro_input};

/// Makes `main` that of a program which starts processes.
///
/// In a process that was started as a child, it runs what the parent asked for and never reaches the body. At the end it
/// waits for the children that are still running and ends the daemonic ones.
#[proc_macro_attribute]
pub fn main(arguments: TokenStream, item: TokenStream) -> TokenStream {
    let function = parse_macro_input!(item as ItemFn);
    expand(no_arguments(arguments).and_then(|()| expand_main(&function)))
}

/// Registers a function by its name, beside leaving it the function that it is.
///
/// Any function can run in another process without this. With it, its signature is checked where it is written, and
/// `procession::tasks` lists it.
#[proc_macro_attribute]
pub fn task(arguments: TokenStream, item: TokenStream) -> TokenStream {
    let function = parse_macro_input!(item as ItemFn);
    expand(no_arguments(arguments).and_then(|()| expand_task(&function)))
}

/// Makes a function a test that can start processes.
///
/// It is a `#[test]` that first looks whether this process is a child. A child is the same test program, run again with
/// this test's name.
#[proc_macro_attribute]
pub fn test(arguments: TokenStream, item: TokenStream) -> TokenStream {
    let function = parse_macro_input!(item as ItemFn);
    expand(no_arguments(arguments).and_then(|()| expand_test(&function)))
}

fn expand(tokens: Result<proc_macro2::TokenStream>) -> TokenStream {
    tokens.unwrap_or_else(Error::into_compile_error).into()
}

fn no_arguments(arguments: TokenStream) -> Result<()> {
    match proc_macro2::TokenStream::from(arguments) {
        arguments if arguments.is_empty() => Ok(()),
        arguments => Err(Error::new_spanned(
            arguments,
            "this attribute takes no arguments",
        )),
    }
}

fn expand_main(function: &ItemFn) -> Result<proc_macro2::TokenStream> {
    refuse_what_main_cannot(function)?;
    let ItemFn {
        attrs,
        vis,
        sig,
        block,
    } = function;
    let (name, output) = (&sig.ident, &sig.output);
    Ok(quote! {
        #(#attrs)*
        #vis fn #name() #output {
            fn body() #output #block
            ::procession::__private::run_main(body)
        }
    })
}

fn expand_test(function: &ItemFn) -> Result<proc_macro2::TokenStream> {
    refuse_what_main_cannot(function)?;
    let ItemFn {
        attrs,
        vis,
        sig,
        block,
    } = function;
    let (name, output) = (&sig.ident, &sig.output);
    Ok(quote! {
        #[::core::prelude::v1::test]
        #(#attrs)*
        #vis fn #name() #output {
            ::procession::__private::enter_test(::core::concat!(
                ::core::module_path!(), "::", ::core::stringify!(#name),
            ));
            #block
        }
    })
}

fn refuse_what_main_cannot(function: &ItemFn) -> Result<()> {
    let sig = &function.sig;
    if let Some(token) = &sig.asyncness {
        return Err(Error::new(
            token.span(),
            "an async function needs a runtime: start it in the body",
        ));
    }
    if !sig.inputs.is_empty() {
        return Err(Error::new_spanned(
            &sig.inputs,
            "this function takes no arguments",
        ));
    }
    if !sig.generics.params.is_empty() {
        return Err(Error::new_spanned(
            &sig.generics,
            "this function cannot be generic",
        ));
    }
    Ok(())
}

fn expand_task(function: &ItemFn) -> Result<proc_macro2::TokenStream> {
    let sig = &function.sig;
    if let Some(token) = &sig.asyncness {
        return Err(Error::new(
            token.span(),
            "a task is a plain function: a worker has no async runtime",
        ));
    }
    if !sig.generics.params.is_empty() {
        let why = "a generic function has no one name to register: it can run in other processes without this attribute";
        return Err(Error::new_spanned(&sig.generics, why));
    }
    let mut types = Vec::<&Type>::new();
    for argument in &sig.inputs {
        match argument {
            FnArg::Typed(typed) => types.push(&typed.ty),
            FnArg::Receiver(receiver) => {
                return Err(Error::new(
                    receiver.span(),
                    "a task is a function, not a method",
                ));
            }
        }
    }
    if types.len() > 8 {
        return Err(Error::new_spanned(
            &sig.inputs,
            "a task has at most 8 arguments: pass a struct or a tuple",
        ));
    }
    let output = match &sig.output {
        ReturnType::Default => quote!(()),
        ReturnType::Type(_, output) => quote!(#output),
    };
    let name = &sig.ident;
    let check = format_ident!("_{}_is_a_task", name);
    Ok(quote! {
        #function

        const _: () = {
            #[allow(dead_code, non_snake_case, reason = "only its types are of interest")]
            fn #check() {
                ::procession::__private::assert_task::<(#(#types,)*), _>(#name)
            }
            ::procession::__private::inventory::submit! {
                ::procession::__private::registered(
                    ::core::concat!(::core::module_path!(), "::", ::core::stringify!(#name)),
                    ::core::any::type_name::<fn(#(#types),*) -> #output>,
                )
            }
        };
    })
}
